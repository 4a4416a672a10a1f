"""The Gaussian schedule: classes fade in and out, without task boundaries."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

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
    """A stream in which each class is most frequent at a time of its own and fades in and out as a
    Gaussian (Shanahan et al., 2021, arXiv 2105.13327). The times are evenly spaced.

    The stream is divided into micro-tasks. Each training example is in exactly one of them, drawn
    from the Gaussian of its class, so no example is seen in two micro-tasks. (The published code
    draws a set of classes for each micro-task instead, and reads all their examples each time.) As
    published, the classes of a micro-task compete in training. All test examples are one test set.

    Args:
        train: The training examples.
        test: The test examples.
        class_names: By class number. Classes come in this order.
        micro_tasks: Number of tasks.
        width: Standard deviation of a class in time, as a share of the stream.
        seed: Of the draw of a micro-task for each example.
        name: Of the stream, for errors and results.

    Returns:
        The stream.

    Raises:
        UserError: For fewer than one micro-task, or so many that one gets no example.
    """
    if micro_tasks < 1:
        raise UserError(f"{name}: {micro_tasks} micro-tasks; expected at least 1.")
    # Checked before anything of the size of `micro_tasks` is made.
    excess = micro_tasks - len(train.labels)
    if excess > 0:
        raise UserError(
            f"{name}: at least {excess} of {micro_tasks} micro-tasks have no example: "
            "ask for fewer."
        )
    random = np.random.default_rng(seed)
    peak = (train.labels + 0.5) / len(class_names)
    time = _reflected(random.normal(peak, width))
    # A time of exactly 1 belongs to the last micro-task.
    task_of = np.minimum((time * micro_tasks).astype(int), micro_tasks - 1)
    tasks = [
        _micro_task(number, np.flatnonzero(task_of == number), train)
        for number in range(micro_tasks)
    ]
    empty = sum(len(task.index) == 0 for task in tasks)
    if empty:
        raise UserError(
            f"{name}: {empty} of {micro_tasks} micro-tasks have no example: ask for fewer."
        )
    test_set = Split("test", tuple(range(len(class_names))), np.arange(len(test.labels)))
    return TaskStream(
        name, train, test, tuple(class_names), tasks=tuple(tasks), test_sets=(test_set,)
    )


def _micro_task(number: int, index: Int[np.ndarray, " examples"], train: Source) -> Split:
    """The examples of a micro-task, counted from 0, and the classes that they have."""
    classes = np.unique(train.labels[index]).tolist()
    return Split(f"micro-task {number + 1}", tuple(classes), index)


def _reflected(time: Float[np.ndarray, " examples"]) -> Float[np.ndarray, " examples"]:
    """Reflect times outside of [0, 1] at its ends.

    Clipping them would gather the tails of the first and last classes in a single micro-task.
    """
    return 1 - np.abs(1 - np.abs(time) % 2)
