"""The Gaussian schedule: classes come and go smoothly, without task boundaries."""

from collections.abc import Sequence

import numpy as np

from promptax.core.errors import UserError
from promptax.data.source import Source
from promptax.data.stream import Split, TaskStream

WIDTH = 0.05
"""Standard deviation of a class in time, as a share of the stream (published: 50 of 1,000)."""


def gaussian_schedule(
    train: Source,
    test: Source,
    *,
    class_names: Sequence[str],
    micro_tasks: int = 200,
    width: float = WIDTH,
    seed: int = 0,
    name: str = "gaussian",
) -> TaskStream:
    """Each class is most frequent at a time of its own, evenly spread over the stream, and
    fades in and out as a Gaussian (Shanahan et al., 2021, arXiv 2105.13327).

    The time is cut into micro-tasks. Every training example comes in exactly one of them, drawn
    from its class's Gaussian, so nothing is seen again later. (The published code draws a set of
    classes for each micro-task instead, and reads all their examples anew each time.) In
    training the classes of a micro-task compete, as published. All test examples are one task.

    Raises `UserError` for fewer micro-tasks than 1, or so many that one gets no example.
    """
    if micro_tasks > (examples := len(train.labels)):
        few = micro_tasks - examples
        raise UserError(
            f"{name}: at least {few} of {micro_tasks} micro-tasks have no example: ask for fewer."
        )
    if micro_tasks < 1:
        raise UserError(f"{name}: {micro_tasks} micro-tasks; expected at least 1.")
    classes = len(class_names)
    random = np.random.default_rng(seed)
    peak = (train.labels + 0.5) / classes
    at = _folded(random.normal(peak, width))
    of = np.minimum((at * micro_tasks).astype(int), micro_tasks - 1)
    stages = [_stage(number, np.flatnonzero(of == number), train) for number in range(micro_tasks)]
    empty = sum(not len(stage.index) for stage in stages)
    if empty:
        raise UserError(
            f"{name}: {empty} of {micro_tasks} micro-tasks have no example: ask for fewer."
        )
    task = Split("test", tuple(range(classes)), np.arange(len(test.labels)))
    return TaskStream(name, train, test, tuple(class_names), tuple(stages), (task,))


def _folded(time: np.ndarray) -> np.ndarray:
    """Times beyond an end of the stream are reflected there: none piles up at the edge."""
    return 1 - np.abs(1 - np.abs(time) % 2)


def _stage(number: int, index: np.ndarray, train: Source) -> Split:
    present = np.unique(train.labels[index]).tolist()
    return Split(f"micro-task {number}", tuple(present), index)
