"""Batches in a reproducible order, read ahead by Grain's threads.

The order is a function of (seed, task, epoch, step) alone, so training can resume at any step by
its number, and every process of a mesh can read its own share of the same global batch. Nothing is
kept between batches, and the work for a batch does not grow with the number of examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import grain.python as grain
import jax
import numpy as np
from jaxtyping import Bool, Float32, Int

from promptax.data.permutation import permuted
from promptax.data.source import Source

HostBatch = dict[str, np.ndarray]
"""This process's share of a batch as NumPy arrays: `image`, `label` and `weight`, and `query` if
the queries of the examples are kept."""


@dataclass(frozen=True)
class TrainBatches:
    """The batches of one task by step number, with each epoch in an order of its own.

    Epochs follow one another without a gap; only the last batch of the task can be partial,
    and is padded with examples of weight 0.
    """

    source: Source
    examples: Int[np.ndarray, " examples"]
    """Positions of the task's examples in the source."""
    batch_size: int
    """Of the global batch; each process reads an equal share of it."""
    epochs: int
    seed: tuple[int, ...]
    """Seed of the run and number of the task: the order depends on both."""
    queries: Float32[np.ndarray, "examples query"] | None = None
    """Of the examples, in the same order as `examples`."""

    def __len__(self) -> int:
        return -(-len(self.examples) * self.epochs // self.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        position = _local_positions(index, self.batch_size)
        is_real = position < len(self.examples) * self.epochs
        # Padding repeats an example of this batch; any would do, since its weight is 0.
        epoch, step = np.divmod(np.where(is_real, position, position[0]), len(self.examples))
        chosen = np.empty_like(step)
        # A batch can reach over the end of an epoch, or over several short ones.
        for number in np.unique(epoch):
            in_epoch = epoch == number
            chosen[in_epoch] = permuted(
                step[in_epoch], len(self.examples), seed=(*self.seed, int(number))
            )
        batch = _read(self.source, self.examples[chosen], is_real)
        return batch if self.queries is None else {**batch, "query": self.queries[chosen]}


@dataclass(frozen=True)
class TestBatches:
    """Examples in the given order, by batch number."""

    __test__ = False  # pytest collects classes by this prefix

    source: Source
    examples: Int[np.ndarray, " examples"]
    """Positions in the source; -1 stands for padding, which gets weight 0."""
    batch_size: int
    """Of the global batch; each process reads an equal share of it."""

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        position = _local_positions(index, self.batch_size)
        is_inside = position < len(self.examples)
        chosen = np.where(is_inside, self.examples[np.where(is_inside, position, 0)], -1)
        is_real = chosen >= 0
        return _read(self.source, np.where(is_real, chosen, self.examples[0]), is_real)


def read_ahead(
    batches: TrainBatches | TestBatches,
    start: int = 0,
    stop: int | None = None,
    *,
    threads: int = 2,
    ahead: int = 4,
) -> Iterator[HostBatch]:
    """Read batches in threads while the device works on earlier ones.

    Args:
        batches: What to read.
        start: Number of the first batch, such as the step at which training resumes.
        stop: Number of the batch to end before; None for all.
        threads: Number of threads that read.
        ahead: Batches to hold ready at most. Each takes memory on the host.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(batches)[start:stop].to_iter_dataset(options))


def _local_positions(index: int, batch_size: int) -> Int[np.ndarray, " local"]:
    """Positions of this process's share of a global batch, counted from the first batch on."""
    local_size = batch_size // jax.process_count()
    start = index * batch_size + jax.process_index() * local_size
    return start + np.arange(local_size)


def _read(
    source: Source, index: Int[np.ndarray, " local"], is_real: Bool[np.ndarray, " local"]
) -> HostBatch:
    return {
        "image": source[index],
        "label": source.labels[index].astype(np.int32),
        "weight": is_real.astype(np.float32),
    }
