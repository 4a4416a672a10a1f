"""Check that everything a run needs is here, and that the numbers come out right.

Only the standard library is imported before a check needs more: a library that cannot be imported
is a finding, and must not end the program.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.core.text import format_bytes

NEEDED = 10**9
"""Free bytes of disk and of memory that even the smallest run may need."""
GOLDEN = (0.71757, 0.18297, -0.15441, 0.75073, 0.28512, 0.01306)
"""Losses of the self test as JAX 0.10.2 computes them on a CPU in float32."""
TOLERANCE = 0.01
"""Largest difference from a golden loss: GPUs and TPUs round matrix products more than float32."""

NVIDIA = Path("/dev/nvidia0")
"""This device exists on Linux if there is an NVIDIA GPU, whether or not JAX can use it."""


@dataclass(frozen=True)
class Finding:
    """One line of the result of a check."""

    check: str
    text: str
    is_problem: bool = False

    def __str__(self) -> str:
        """A line of text: whether it is a problem, the name of the check, and the finding."""
        return f"{'PROBLEM' if self.is_problem else 'ok':<8} {self.check:<9} {self.text}"


def examine(folder: Path | None = None, *, numbers: bool = True) -> Iterator[Finding]:
    """Run all checks, one after another, and yield each finding as soon as there is one.

    Args:
        folder: the folder of all data sets; see `promptax.data.location.data_dir`.
        numbers: whether to train for ten seconds and compare the losses.
    """
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _versions,
        "devices": _devices,
        "mesh": _mesh,
        "disk": lambda: _disk(folder),
        "memory": _memory,
        "bundled": _bundled,
        "data": lambda: _data(folder),
        "weights": _weights,
    }
    if numbers:
        checks["numbers"] = _numbers
    for name, check in checks.items():
        try:
            for text in check():
                yield Finding(name, text)
        except UserError as error:
            yield Finding(name, str(error), is_problem=True)
        except Exception as error:
            # The purpose is to find whatever is broken, so an exception in one check must not end
            # the others.
            yield Finding(name, _reason(error), is_problem=True)


def _versions() -> Iterator[str]:
    from importlib.metadata import requires, version

    from packaging.requirements import Requirement

    from promptax.runs.provenance import describe_source, source

    yield f"promptax {describe_source(source())}, Python {sys.version.split()[0]}"
    needed = [Requirement(line) for line in requires("promptax") or ()]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    found = {need.name: version(need.name) for need in needed}
    yield ", ".join(f"{name} {number}" for name, number in found.items())
    wrong = [
        str(need)
        for need in needed
        if not need.specifier.contains(found[need.name], prereleases=True)
    ]
    if wrong:
        raise UserError(f"promptax needs {', '.join(wrong)}: install it again with pip.")


def _devices() -> Iterator[str]:
    devices = _start_jax()
    kinds = sorted({device.device_kind for device in devices})
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    memory = f", {format_bytes(limit)} of memory each" if limit else ""
    yield f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform}){memory}"
    chosen = os.environ.get("JAX_PLATFORMS")
    if devices[0].platform == "cpu" and NVIDIA.exists() and not chosen:
        raise UserError(
            "there is an NVIDIA GPU, but JAX does not use it: pip install 'promptax[cuda]'."
        )


def _start_jax():
    import jax

    try:
        return jax.devices()
    except Exception as error:
        # The plugin of each platform raises exceptions of its own.
        platforms = os.environ.get("JAX_PLATFORMS")
        asked = f"JAX_PLATFORMS is {platforms}" if platforms else "JAX_PLATFORMS is not set"
        raise UserError(f"JAX cannot start its devices ({_reason(error)}): {asked}.") from None


def _mesh() -> Iterator[str]:
    from promptax.core.sharding import make_mesh

    _start_jax()
    mesh = make_mesh()
    shown = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    yield f"{shown}; --batch-size has to divide by {mesh.size}"


def _disk(folder: Path | None) -> Iterator[str]:
    from promptax.data.location import data_dir

    for what, path in (("runs", Path.cwd()), ("data", data_dir(folder).absolute())):
        # A folder that does not exist yet will be made inside the nearest one that does.
        place = next(parent for parent in (path, *path.parents) if parent.is_dir())
        usage = shutil.disk_usage(place)
        yield f"{what} in {path}: {format_bytes(usage.free)} of {format_bytes(usage.total)} free"
        if not os.access(place, os.W_OK):
            raise UserError(f"'{place}' cannot be written: {what} need another folder.")
        if usage.free < NEEDED:
            raise UserError(f"less than {format_bytes(NEEDED)} is free at '{place}': make room.")


def _memory() -> Iterator[str]:
    free = _free_memory()
    if free is None:
        yield "this system does not tell how much is free"
        return
    yield f"{format_bytes(free)} free"
    if free < NEEDED:
        raise UserError(f"less than {format_bytes(NEEDED)} of memory is free: end other programs.")


def _free_memory() -> int | None:
    """Bytes that are available without swapping; None on systems other than Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = dict(line.split(":", 1) for line in lines)["MemAvailable"]
    return 1024 * int(kilobytes.split()[0])


def _bundled() -> Iterator[str]:
    from importlib import resources

    from promptax.core.files import sha256_of

    folder = Path(str(resources.files("promptax") / "data" / "bundled"))
    sums = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    for expected, name in sums:
        if sha256_of(folder / name) != expected:
            raise UserError(f"'{folder / name}' is damaged: install promptax again.")
    yield f"the {len(sums)} files of the package are as they were published"


def _data(folder: Path | None) -> Iterator[str]:
    from promptax.data.location import data_dir, open_dataset, prepared_names

    names = prepared_names(folder)
    yield f"prepared in {data_dir(folder)}: {', '.join(names) or 'none'}"
    for name in names:
        open_dataset(name, folder)


def _weights() -> Iterator[str]:
    from promptax.nn.weights import BUNDLED

    found = sorted(path.name for path in Path.cwd().iterdir() if _holds_weights(path))
    yield f"{', '.join(BUNDLED)} (of the package); in this folder: {', '.join(found) or 'none'}"


def _holds_weights(path: Path) -> bool:
    if path.suffix != ".npz":
        return path.suffix == ".safetensors"
    from promptax.core.files import npz_names

    return "embedding/kernel" in npz_names(path)  # the name of Google's checkpoints


def _numbers() -> Iterator[str]:
    import numpy as np

    _start_jax()
    losses, first_digest = _train()
    second_digest = _train()[1]
    off = np.abs(losses - np.array(GOLDEN)).max()
    if not off <= TOLERANCE:  # so, and not `>`: a loss that is not a number fails, too
        raise UserError(
            f"losses of the self test are {np.round(losses, 5).tolist()}; expected {list(GOLDEN)} "
            f"to within {TOLERANCE}. These versions or devices compute something else: please "
            "report it."
        )
    yield f"losses of {len(GOLDEN)} steps of L2P agree with the golden ones to {off:.0e}"
    if first_digest != second_digest:
        raise UserError(
            "the same steps gave other bits the second time, so runs cannot be reproduced bit for "
            "bit here. On a GPU: XLA_FLAGS=--xla_gpu_deterministic_ops=true."
        )
    yield "and the same bits come out twice"


def _train():
    """Train a few steps over two tasks on all devices.

    Returns the losses and a digest of the trained parameters.
    """
    import jax
    import jax.random as jr
    import numpy as np

    from promptax import data, nn
    from promptax.core.sharding import make_mesh
    from promptax.runs.presets.bundled import FASHION, bundled_recipe, slotted_l2p
    from promptax.runs.provenance import digest
    from promptax.training.trainer import Trainer

    # These are no preset's settings: presets may be tuned anew, and the golden losses must stay.
    method = slotted_l2p(5, layer=3, top_k=4, length=5, pull=0.5)
    recipe = bundled_recipe(FASHION, 0.03, epochs=1)
    steps = len(GOLDEN) // 2
    batch_size = recipe.schedule.batch_size
    stream = data.split_fashion_mnist().per_class(steps * batch_size // 2).first(2)
    mesh = make_mesh(math.gcd(jax.local_device_count(), batch_size))
    backbone = nn.load_vit("glyph-vit")
    trainer, state = Trainer.create(method, backbone, stream, recipe, mesh=mesh, key=jr.key(0))
    losses = []
    for task_number in range(2):
        task = trainer.task(stream, task_number)
        state = trainer.begin_task(state, task)
        for batch in trainer.batches(stream, task_number, seed=0):
            state, metrics = trainer.step(state, batch, task)
            losses.append(metrics.loss)
        state = trainer.end_task(state, task)
    return np.array(losses), digest(state.params)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {(str(error).splitlines() or [''])[0]}".rstrip()
