"""What a profile says of a GPU, for `scripts/benchmark.py`: its kernels, and when none ran."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax


@dataclass(frozen=True)
class Kernel:
    """A kernel that ran once on a GPU."""

    name: str
    start: float
    """In nanoseconds."""
    end: float


def traced(work: Callable[[], None]) -> list[Kernel]:
    """Run something, and return the kernels that ran on the GPU meanwhile, in their order.

    Args:
        work: What to run. It returns when the device is done with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work()
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        kernels = list(_kernels(data))
    return sorted(kernels, key=lambda kernel: kernel.start)


def _kernels(data: Any) -> Iterator[Kernel]:
    """The kernels of a `jax.profiler.ProfileData`, which is no type that annotations can name."""
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    start = event.start_ns
                    yield Kernel(event.name, start, start + event.duration_ns)


def busy_nanoseconds(kernels: Sequence[Kernel]) -> float:
    """How long at least one kernel ran; kernels can overlap.

    Args:
        kernels: In the order in which they started.
    """
    busy = 0.0
    end = 0.0
    for kernel in kernels:
        busy += max(0.0, kernel.end - max(kernel.start, end))
        end = max(end, kernel.end)
    return busy


def idle_share(kernels: Sequence[Kernel]) -> float:
    """The share of the time from the first kernel to the last in which none ran.

    Args:
        kernels: In the order in which they started; at least one.
    """
    whole = max(kernel.end for kernel in kernels) - kernels[0].start
    return 1 - busy_nanoseconds(kernels) / whole
