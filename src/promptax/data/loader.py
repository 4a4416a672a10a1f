"""Batches in a reproducible order, read ahead by Grain's threads.

The order is a function of (seed, stage, epoch, step) alone, so any step can be resumed by
its number, and every process can take its own share of the same global batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import grain.python as grain
import jax
import numpy as np
from jaxtyping import Float32, Int

from promptax.data.source import Source

HostBatch = dict[str, np.ndarray]
"""`image`, `label` and `weight` of this process's share of a batch, and `query` where it is kept,
as NumPy arrays."""


@dataclass(frozen=True)
class TrainBatches:
    """The batches of one stage, by step number: each epoch in an order of its own.

    Epochs follow one another without a gap; only the last batch of the stage can be partial,
    and is padded with examples of weight 0.
    """

    source: Source
    examples: Int[np.ndarray, " examples"]
    batch_size: int
    epochs: int
    seed: tuple[int, ...]
    queries: Float32[np.ndarray, "examples query"] | None = None
    """Of the examples, in the same order."""

    def __len__(self) -> int:
        return -(-len(self.examples) * self.epochs // self.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        position = index * self.batch_size + _local(self.batch_size)
        real = position < len(self.examples) * self.epochs
        epoch, place = np.divmod(np.where(real, position, position[0]), len(self.examples))
        chosen = np.empty_like(place)
        for number in np.unique(epoch):
            here = epoch == number
            chosen[here] = self._order(int(number))[place[here]]
        batch = _read(self.source, self.examples[chosen], real)
        return batch if self.queries is None else {**batch, "query": self.queries[chosen]}

    def _order(self, epoch: int) -> Int[np.ndarray, " examples"]:
        return np.random.default_rng((*self.seed, epoch)).permutation(len(self.examples))


@dataclass(frozen=True)
class TestBatches:
    """Some examples in the given order, by batch number; -1 stands for padding."""

    __test__ = False  # not a test case, whatever its name

    source: Source
    examples: Int[np.ndarray, " examples"]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        position = index * self.batch_size + _local(self.batch_size)
        inside = position < len(self.examples)
        chosen = np.where(inside, self.examples[np.where(inside, position, 0)], -1)
        real = chosen >= 0
        return _read(self.source, np.where(real, chosen, self.examples[0]), real)


def read_ahead(
    batches: TrainBatches | TestBatches,
    start: int = 0,
    stop: int | None = None,
    *,
    threads: int = 2,
    ahead: int = 4,
) -> Iterator[HostBatch]:
    """The batches from number `start` up to `stop`, at most `ahead` prepared in advance."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(batches)[start:stop].to_iter_dataset(options))


def _local(batch_size: int) -> Int[np.ndarray, " local"]:
    local = batch_size // jax.process_count()
    return jax.process_index() * local + np.arange(local)


def _read(source: Source, index: np.ndarray, real: np.ndarray) -> HostBatch:
    return {
        "image": source[index],
        "label": source.labels[index].astype(np.int32),
        "weight": real.astype(np.float32),
    }
