"""How fast promptax is, on the machine at hand.

    python scripts/benchmark.py loader            # images/s from a prepared set

Machines are noisy: a figure is the median of `--repeats` passes, printed with their range.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.source import ArraySource


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

    def __call__(self) -> None:
        """Measure, and print a line."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            shape = (self.images, self.side, self.side, 3)
            random = np.random.default_rng(0)
            np.save(path, random.integers(0, 256, shape, dtype=np.uint8))
            source = ArraySource(np.load(path, mmap_mode="r"), np.zeros(self.images, int))
            index = np.arange(self.images)
            batches = TrainBatches(source, index, self.batch_size, self.epochs, (0,))
            seconds = measure(lambda: exhaust(batches), self.repeats)
        report("loader", [self.images * self.epochs / each for each in seconds], "images/s")


def exhaust(batches: TrainBatches) -> None:
    """Read every batch, as training does, and do nothing with it."""
    for _ in read_ahead(batches):
        pass


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of so many runs, after one that is not counted."""
    run()
    return [_timed(run) for _ in range(repeats)]


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def report(name: str, figures: list[float], unit: str) -> None:
    middle = statistics.median(figures)
    print(f"{name}: {middle:,.0f} {unit} (from {min(figures):,.0f} to {max(figures):,.0f})")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"loader": Loader})()
