"""How fast promptax is, on the machine at hand.

    python scripts/benchmark.py step --method l2p --vit vit-b/16 --batch-size 16
    python scripts/benchmark.py step --against torch      # with PyTorch installed
    python scripts/benchmark.py loader                    # images/s from a prepared set

Machines are noisy, so what is compared is run in turns (A B A B ...), and a ratio is the median of
the ratios of neighbours. `--json FILE` keeps every figure.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

from promptax import nn
from promptax.config import Images, Optimizer, Recipe, Schedule
from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.source import ArraySource
from promptax.experiment import METHODS
from promptax.methods import L2P
from promptax.train import Trainer, TrainState, train_step
from promptax.types import Batch, Task

CLASSES, COMPETING = 100, 10
"""Outputs of the head, and how many of them compete in a task."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Time a training step, augmentation and optimizer included."""

    method: Literal["l2p", "dualprompt", "linear", "finetune"] = "l2p"
    """Which method, with its published prompts."""
    vit: str = "vit-b/16"
    """Shape of the ViT; its weights are random."""
    image: int = 224
    """Side of the images that the ViT takes."""
    batch_size: int = 16
    """Images of a step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the ViT computes in."""
    remat: bool = False
    """Recompute blocks in the backward pass."""
    steps: int = 3
    """Steps of one measurement."""
    repeats: int = 3
    """Measurements of each side."""
    against: Literal["torch"] | None = None
    """What to compare with, in turns."""
    compile: bool = False
    """Let PyTorch compile its model."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Compile, measure in turns, and print a line for each figure."""
        ours, figures = self._prepare()
        theirs = None if self.against is None else self._torch()
        times = in_turns([ours, *([] if theirs is None else [theirs])], self.repeats)
        seconds = [statistics.median(each) / self.steps for each in times]
        figures |= self._speed(seconds[0])
        if theirs is not None:
            pairs = zip(times[1], times[0], strict=True)
            figures["torch_step_seconds"] = seconds[1]
            figures["times_as_fast_as_torch"] = statistics.median(b / a for a, b in pairs) ** -1
        show(figures, self.json)

    def _speed(self, seconds: float) -> Figures:
        flops = step_flops(self.method, nn.vit_config(self.vit, self.image)) * self.batch_size
        peak = matmul_peak(self.dtype)
        return {
            "step_seconds": seconds,
            "images_per_second": self.batch_size / seconds,
            "flops_per_second": flops / seconds,
            "matmul_peak": peak,
            "share_of_peak": flops / seconds / peak,
        }

    def _prepare(self) -> tuple[Callable[[], None], Figures]:
        trainer, state = self._trainer()
        batch, task = self._batch(), Task.of(0, range(COMPETING), num_classes=CLASSES, steps=1000)
        began = time.perf_counter()
        lowered: Any = train_step  # Equinox does not type what it wraps
        compiled = lowered.lower((trainer, batch, task), state).compile()
        compiling = time.perf_counter() - began
        memory: Any = compiled.compiled.memory_analysis()
        held = {"state": state}

        def run() -> None:
            for _ in range(self.steps):
                held["state"], _ = compiled((trainer, batch, task), held["state"])
            jax.block_until_ready(held["state"].params)

        device = jax.devices()[0].device_kind
        facts = {"device": device, **vars(self), "json": None, "compile_seconds": compiling}
        return run, facts | {"temporary_bytes": memory.temp_size_in_bytes}

    def _trainer(self) -> tuple[Trainer, TrainState]:
        config = nn.vit_config(self.vit, self.image)
        vit = nn.ViT(config, key=jr.key(0), dtype=self.dtype, remat=self.remat)
        method = L2P(vote_group=None) if self.method == "l2p" else METHODS[self.method]()
        images = replace(Images(), size=self.image, resize=round(self.image * 8 / 7))
        recipe = Recipe(Optimizer(), Schedule(1, self.batch_size), images)
        return Trainer.create(method, vit, CLASSES, recipe, key=jr.key(1))

    def _batch(self) -> Batch:
        """Small images, as CIFAR-100's, that the step enlarges."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (self.batch_size, 32, 32, 3), dtype=np.uint8)
        labels = random.integers(0, COMPETING, self.batch_size).astype(np.int32)
        return Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(self.batch_size))

    def _torch(self) -> Callable[[], None]:
        from torch_step import TorchStep

        config = nn.vit_config(self.vit, self.image)
        step = TorchStep(self.method, config, self.batch_size, self.dtype, self.compile).make()

        def run() -> None:
            for _ in range(self.steps):
                step()

        return run


@dataclass(frozen=True)
class Loader:
    """Images a second from a memory-mapped cache, in the order of training."""

    images: int = 2000
    """Images in the cache; as random bytes in a temporary file, which stays in memory."""
    side: int = 256
    """Their side, in pixels."""
    batch_size: int = 128
    """Images of a batch."""
    epochs: int = 5
    """Passes over the cache of one measurement."""
    repeats: int = 5
    """Measurements."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print the median and the range."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            shape = (self.images, self.side, self.side, 3)
            np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
            source = ArraySource(np.load(path, mmap_mode="r"), np.zeros(self.images, int))
            index = np.arange(self.images)
            batches = TrainBatches(source, index, self.batch_size, self.epochs, (0,))
            (seconds,) = in_turns([lambda: exhaust(batches)], self.repeats)
        rates = [self.images * self.epochs / each for each in seconds]
        figures = {"images_per_second": statistics.median(rates)}
        show(figures | {"slowest": min(rates), "fastest": max(rates)}, self.json)


def exhaust(batches: TrainBatches) -> None:
    """Read every batch, as training does, and do nothing with it."""
    for _ in read_ahead(batches):
        pass


def in_turns(runs: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Seconds of each run, one after another so many times, after a turn that is not counted."""
    turns = [[_timed(run) for run in runs] for _ in range(1 + repeats)]
    return [list(times) for times in zip(*turns[1:], strict=True)]


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def step_flops(method: str, config: nn.ViTConfig) -> float:
    """Floating-point operations that the step of an image needs: matrix products, counted twice
    for a multiplication and an addition, none of them for what a frozen leaf does not need.

    Backwards, activations cost as much as forwards, and weights as much again where they are
    trained. A prompted step has a query pass in front.
    """
    tokens = 1 + config.grid**2
    block = lambda tokens, keys: (
        2 * tokens * config.dim * (4 * config.dim + 2 * config.mlp) + 4 * tokens * keys * config.dim
    )
    plain = config.depth * block(tokens, tokens)
    patches = 2 * config.grid**2 * config.patch**2 * config.channels * config.dim
    if method == "linear":
        return patches + plain
    if method == "finetune":
        return 3 * (patches + plain)
    longer, keys = (tokens + 40, tokens + 40) if method == "l2p" else (tokens, tokens + 5)
    return 2 * patches + plain + 2 * config.depth * block(longer, keys)


def matmul_peak(dtype: str, side: int | None = None) -> float:
    """Operations a second of one large matrix product: the best of a few tries."""
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((side, side), dtype)
    product = eqx.filter_jit(lambda a: a @ a)
    run = lambda: jax.block_until_ready(product(a))
    run()
    return 2 * side**3 / min(_timed(run) for _ in range(10))


def show(figures: Figures, path: Path | None) -> None:
    for name, value in figures.items():
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
        print(f"{name:<24} {text}")
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"step": Step, "loader": Loader})()
