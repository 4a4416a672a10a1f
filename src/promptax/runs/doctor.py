"""Is everything here that a run needs, and do the numbers come out right?

Nothing but the standard library is imported before a check asks for it: what cannot be imported
is what somebody wants to be told.
"""

import math
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError

NEEDED = 10**9
"""Bytes of disk and of memory below which even the smallest run is in danger."""
GOLDEN = (0.71669, 0.19443, -0.14728, 0.75342, 0.29452, 0.00721)
"""Losses of the self test, as JAX 0.10.2 gave them on a CPU in float32."""
TOLERANCE = 0.01
"""Of a loss: matrix products of GPUs and TPUs round more than float32 does."""

NVIDIA = Path("/dev/nvidia0")
"""There where there is a GPU, whatever JAX makes of it."""


@dataclass(frozen=True)
class Finding:
    """What one check has to say."""

    check: str
    text: str
    is_problem: bool = False

    def __str__(self) -> str:
        """As a line of text shows it."""
        return f"{'PROBLEM' if self.is_problem else 'ok':<8} {self.check:<9} {self.text}"


def examine(folder: Path | None = None, *, numbers: bool = True) -> Iterator[Finding]:
    """Check one thing after another.

    **Arguments:**

    - `folder`: of all data sets; see `promptax.data.location.data_dir`.
    - `numbers`: whether to train for ten seconds and compare the losses.
    """
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _versions,
        "devices": _devices,
        "mesh": _mesh,
        "disk": lambda: _disk(folder),
        "memory": _memory,
        "box": _box,
        "data": lambda: _data(folder),
        "weights": _weights,
    }
    for name, check in {**checks, **({"numbers": _numbers} if numbers else {})}.items():
        try:
            for text in check():
                yield Finding(name, text)
        except UserError as error:
            yield Finding(name, str(error), is_problem=True)
        except Exception as error:
            # Whatever is broken here is what was asked for.
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
    wrong = [str(n) for n in needed if not n.specifier.contains(found[n.name], prereleases=True)]
    if wrong:
        raise UserError(f"needed are {', '.join(wrong)}: install promptax again with pip.")


def _devices() -> Iterator[str]:
    devices = _start_jax()
    kinds = sorted({device.device_kind for device in devices})
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    memory = f", {_size(limit)} of memory each" if limit else ""
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
        # Each platform has errors of its own.
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
        # What does not exist yet is made inside the nearest folder that does.
        place = next(parent for parent in (path, *path.parents) if parent.is_dir())
        usage = shutil.disk_usage(place)
        yield f"{what} in {path}: {_size(usage.free)} of {_size(usage.total)} free"
        if not os.access(place, os.W_OK):
            raise UserError(f"'{place}' cannot be written: {what} need another folder.")
        if usage.free < NEEDED:
            raise UserError(f"less than {_size(NEEDED)} is free at '{place}': make room.")


def _memory() -> Iterator[str]:
    free = _free_memory()
    if free is None:
        yield "this system does not say how much is free"
        return
    yield f"{_size(free)} free"
    if free < NEEDED:
        raise UserError(f"less than {_size(NEEDED)} of memory is free: end other programs.")


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system is a Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = dict(line.split(":", 1) for line in lines)["MemAvailable"]
    return 1024 * int(kilobytes.split()[0])


def _box() -> Iterator[str]:
    from importlib import resources

    from promptax.core.files import sha256_of

    box = Path(str(resources.files("promptax") / "data" / "bundled"))
    sums = [line.split() for line in (box / "SHA256SUMS").read_text().splitlines()]
    for expected, name in sums:
        if sha256_of(box / name) != expected:
            raise UserError(f"'{box / name}' is damaged: install promptax again.")
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
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return path.suffix == ".safetensors"
    with zipfile.ZipFile(path) as archive:
        return "embedding/kernel.npy" in archive.namelist()


def _numbers() -> Iterator[str]:
    import numpy as np

    _start_jax()
    (losses, first), (_, second) = _train(), _train()
    off = np.abs(losses - np.array(GOLDEN)).max()
    if not off <= TOLERANCE:
        raise UserError(
            f"losses of the self test are {np.round(losses, 5).tolist()}; expected {list(GOLDEN)} "
            f"to within {TOLERANCE}. Versions or devices compute something else: please report it."
        )
    yield f"losses of {len(GOLDEN)} steps of L2P agree with the golden ones to {off:.0e}"
    if first != second:
        raise UserError(
            "the same steps gave other bits the second time, so runs cannot be reproduced bit for "
            "bit here. On a GPU: XLA_FLAGS=--xla_gpu_deterministic_ops=true."
        )
    yield "and the same bits come out twice"


def _train():
    """Losses of some steps over two tasks on all devices, and the digest of what was trained."""
    import jax
    import jax.random as jr
    import numpy as np

    from promptax import data, nn
    from promptax.runs.presets.bundled import FASHION, bundled_recipe, slotted_l2p
    from promptax.runs.provenance import digest
    from promptax.core.sharding import make_mesh
    from promptax.training.trainer import Trainer

    # Settings of its own: the presets may be tuned anew, and the losses are to stay.
    method = slotted_l2p(5, layer=3, top_k=4, length=5, pull=0.5)
    recipe = bundled_recipe(FASHION, 0.03, epochs=1)
    steps, batch_size = len(GOLDEN) // 2, recipe.schedule.batch_size
    stream = data.split_fashion_mnist().per_class(steps * batch_size // 2).first(2)
    mesh = make_mesh(math.gcd(jax.local_device_count(), batch_size))
    backbone = nn.load_vit("glyph-vit")
    trainer, state = Trainer.create(method, backbone, stream, recipe, mesh=mesh, key=jr.key(0))
    losses = []
    for stage in range(2):
        task = trainer.task(stream, stage)
        state = trainer.begin_task(state, task)
        for batch in trainer.batches(stream, stage, seed=0):
            state, metrics = trainer.step(state, batch, task)
            losses.append(metrics.loss)
        state = trainer.end_task(state, task)
    return np.array(losses), digest(state.params)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {(str(error).splitlines() or [''])[0]}".rstrip()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
