"""A stream that goes on where another one ends, with classes that are new to it."""

from dataclasses import replace

import numpy as np

from promptax.core.errors import UserError
from promptax.data.sequence import ConcatenatedSource
from promptax.data.stream import Split, TaskStream


def extended(first: TaskStream, second: TaskStream) -> TaskStream:
    """The tasks of one stream, and behind them those of another.

    The classes of the second stream follow those of the first. Images of a smaller size are
    enlarged to the larger one.

    Raises:
        UserError: A class of the second stream has the name of one of the first, or the tasks of
            either do not have a test set each.
    """
    for stream in (first, second):
        if len(stream.tasks) != len(stream.test_sets):
            raise UserError(f"{stream.name}: each task needs a test set to be extended.")
    offset = first.num_classes
    train = ConcatenatedSource([first.train, second.train], [0, offset])
    test = ConcatenatedSource([first.test, second.test], [0, offset])
    return TaskStream(
        f"{first.name} + {second.name}",
        train,
        test,
        (*first.class_names, *_new_names(first, second)),
        tasks=(*first.tasks, *_moved(second, second.tasks, train, offset)),
        test_sets=(*first.test_sets, *_moved(second, second.test_sets, test, offset)),
    )


def _new_names(first: TaskStream, second: TaskStream) -> tuple[str, ...]:
    """The class names of the second stream; classes that are only numbered go on counting."""
    numbers = tuple(map(str, range(second.num_classes)))
    if second.class_names == numbers:
        return tuple(str(first.num_classes + n) for n in range(second.num_classes))
    if both := set(first.class_names) & set(second.class_names):
        raise UserError(
            f"class '{min(both)}' of {second.name} is already in {first.name}: only new classes "
            "can be added, so rename it, or leave it out."
        )
    return second.class_names


def _moved(
    stream: TaskStream, splits: tuple[Split, ...], source: ConcatenatedSource, offset: int
) -> tuple[Split, ...]:
    """The splits of the second stream as parts of the whole one."""
    start = int(source.starts[1])
    return tuple(
        replace(
            split,
            name=f"{stream.name} {split.name}",
            classes=tuple(c + offset for c in split.classes),
            index=np.asarray(split.index) + start,
        )
        for split in splits
    )
