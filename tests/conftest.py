"""What all tests share: eight fake devices, and a ViT and data small enough for runs of seconds."""

import functools
import gc
import os
import runpy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before JAX looks for devices; subprocesses inherit it. The tests compile far more than they
# compute, and without optimisation XLA compiles five times faster.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # Later versions no longer know it, and end at a flag that they do not know.
        *["--xla_cpu_use_fusion_emitters=false"][: version("jaxlib").startswith("0.10.")],
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Neither are compiled steps kept in the user's cache, nor found there.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import settings

from promptax import nn
from promptax.cli import main
from promptax.core.sharding import make_mesh

# The first example of a test may compile; a machine that is busy is no failure.
settings.register_profile("promptax", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("promptax")

# Compiling makes millions of objects that live on. Looking through them for cycles as often as
# Python does by default takes a twentieth of the time of all tests.
gc.set_threshold(200_000, 20, 50)

MANY_MAPPINGS = 20_000
"""Mappings of memory beyond which a process drops what it has compiled."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", metavar="FILE:CLASS", help="test a method of yours, too")


def pytest_configure(config: pytest.Config) -> None:
    if (given := config.getoption("--method")) is not None:
        path, _, name = given.rpartition(":")
        toy.EVERY[name] = runpy.run_path(path)[name]()


@dataclass(frozen=True)
class Tiny:
    """Files of a ViT for 32x32 images, and of 6 classes of grey 16x16 images."""

    weights: Path
    train: Path
    test: Path

    def flags(self, tasks: int = 3) -> list[str]:
        """That train on these files: 2 steps a task with 3 tasks."""
        data = ["--data.train", f"{self.train}", "--data.test", f"{self.test}"]
        sizes = ["--data.tasks", f"{tasks}", "--epochs", "1", "--batch-size", "8"]
        sizes += ["--eval.batch-size", "16"]
        return ["--weights", f"{self.weights}", *data, *sizes]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    files = Tiny(*(folder / f"{name}.npz" for name in ("weights", "train", "test")))
    vit = nn.ViT(nn.ViTConfig(8, 32, 6, 4, 64, image=32), key=jr.key(0))
    leaves: dict[str, Any] = {name: np.asarray(x) for name, x in nn.vit_leaves(vit).items()}
    np.savez(files.weights, **leaves)
    random = np.random.default_rng(0)
    for path, each in ((files.train, 8), (files.test, 3)):
        labels = np.repeat(np.arange(6), each)
        noise = random.integers(0, 100, (len(labels), 16, 16), np.uint8)
        np.savez(path, images=noise + (25 * labels).astype(np.uint8)[:, None, None], labels=labels)
    return files


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """The folder of a finished run of the command line, which no test may change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "linear", *tiny.flags(), "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Each compiled step keeps mappings of memory, of which a process may have some 65,000: with
    those of all modules XLA ends in a segmentation fault."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def mesh():
    """One device: the default, where sharding is not what is tested."""
    return make_mesh(1)


@pytest.fixture(scope="session")
def fitted(mesh):
    """A method by its name, trained on the toy stream once for all tests."""

    @functools.cache
    def fit(name: str) -> toy.Fitted:
        return toy.run(toy.EVERY[name], mesh, counted=True)

    return fit
