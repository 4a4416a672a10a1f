"""The command `loader` of `scripts/benchmark.py`: how fast batches are put together on the host."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import Figures, in_turns, show

from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.source import ArraySource

MILLISECONDS = 1e3


class NoImages:
    """A source whose images have no pixels, so that reading a batch is only to order and to label
    it."""

    def __init__(self, examples: int):
        self.labels = np.zeros(examples, np.int32)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.empty((len(index), 0, 0, 1), np.uint8)


@dataclass(frozen=True)
class Loader:
    """Time batches in the order of training: their order alone, then with images from a
    memory-mapped prepared set."""

    examples: tuple[int, ...] = (10_000, 1_400_000, 14_000_000)
    """Sizes of the epochs whose order is timed, without images."""
    batches: int = 200
    """Batches of one measurement of the order."""
    images: int = 2000
    """Images in the prepared set: random bytes in a temporary file, which stays in memory."""
    side: int = 256
    """Their side, in pixels."""
    batch_size: int = 128
    """Images of a batch."""
    epochs: int = 5
    """Passes over the prepared set of one measurement."""
    repeats: int = 5
    """Measurements."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print the median and the range of each case."""
        rows: list[Figures] = []
        for examples in self.examples:
            show(self._order(examples), rows, self.json)
        show(self._prepared_set(), rows, self.json)

    def _order(self, examples: int) -> Figures:
        """Time batches without images, taken evenly from one epoch, in this thread alone."""
        batches = TrainBatches(
            NoImages(examples),
            np.arange(examples),
            batch_size=self.batch_size,
            epochs=1,
            seed=(0, 0),
        )
        steps = np.linspace(0, len(batches) - 1, self.batches).astype(int).tolist()
        seconds = self._seconds(lambda: [batches[step] for step in steps])
        each = [MILLISECONDS * time / self.batches for time in seconds]
        return {
            "examples": examples,
            "order_ms_a_batch": statistics.median(each),
            "fastest": min(each),
            "slowest": max(each),
        }

    def _prepared_set(self) -> Figures:
        """Time whole epochs of a prepared set, read ahead as in training."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            shape = (self.images, self.side, self.side, 3)
            np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
            batches = TrainBatches(
                ArraySource(np.load(path, mmap_mode="r"), np.zeros(self.images, int)),
                np.arange(self.images),
                batch_size=self.batch_size,
                epochs=self.epochs,
                seed=(0, 0),
            )
            seconds = self._seconds(lambda: [None for _ in read_ahead(batches)])
        rates = [self.images * self.epochs / time for time in seconds]
        return {
            "images": self.images,
            "images_per_second": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
        }

    def _seconds(self, run: Callable[[], object]) -> list[float]:
        (seconds,) = in_turns([run], self.repeats)
        return seconds
