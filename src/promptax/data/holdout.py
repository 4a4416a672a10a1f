"""The validation cut: training examples that are set aside and tested on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.split import Split

Splits = tuple[Split, ...]


def hold_out(
    tasks: Splits,
    test_sets: Splits,
    labels: Int[np.ndarray, " examples"],
    share: float,
    *,
    class_names: Sequence[str],
    seed: int,
) -> tuple[Splits, Splits]:
    """Draw validation examples from the training examples of a stream.

    If each task has a test set, the share is that of each class in each task, and becomes the
    task's test set. A single test set gets a share of each class in all tasks together.

    Args:
        tasks: The training examples of each task.
        test_sets: The test sets that are replaced: one for each task, or a single one.
        labels: The class of each example of the training source.
        share: Of the examples to hold out, between 0 and 1.
        class_names: By class number, for errors.
        seed: Of the draw.

    Returns:
        The tasks without the validation examples, and the test sets, which hold these alone. They
        have every class of the tasks on both sides.

    Raises:
        UserError: For a class, or a task, with too few examples.
    """
    pools = [task.index for task in tasks]
    if len(test_sets) == 1:
        pools = [np.concatenate(pools)]
    random = np.random.default_rng(seed)
    held = [pool[_drawn(labels[pool], share, random)] for pool in pools]
    tested = np.concatenate(held)
    trained = np.concatenate(pools)
    missing = np.setdiff1d(labels[trained], labels[tested])
    if len(missing):
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"no validation set can be cut: class '{printable(class_names[missing[0]])}'{others} "
            "has a single training example in its task, which cannot be both trained and tested "
            "on. Add examples of it, or leave it out."
        )
    cut_tasks = tuple(_without(task, tested, labels, share) for task in tasks)
    cut_test_sets = tuple(
        replace(test_set, index=np.sort(index))
        for test_set, index in zip(test_sets, held, strict=True)
    )
    for test_set in cut_test_sets:
        if not len(test_set.index):
            raise UserError(
                f"no validation set can be cut: task '{printable(test_set.name)}' has a single "
                "training example of each class. Add examples to it, or leave it out."
            )
    return cut_tasks, cut_test_sets


def _drawn(
    labels: Int[np.ndarray, " examples"], share: float, random: np.random.Generator
) -> Bool[np.ndarray, " examples"]:
    """Whether each example is held out: a share of each class, drawn at random.

    At least one example of a class is held out, and at least one is left. If a class has a single
    example, it is not held out.
    """
    order = random.permutation(len(labels))
    is_drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        is_drawn[members[:count]] = True
    return is_drawn


def _without(
    task: Split,
    tested: Int[np.ndarray, " tested"],
    labels: Int[np.ndarray, " examples"],
    share: float,
) -> Split:
    """A task without the examples that are tested on, and without the classes that had no others.

    Raises `UserError` if nothing would be left.
    """
    kept = np.sort(task.index[np.isin(task.index, tested, invert=True)])
    if not len(kept):
        raise UserError(
            f"a validation set of share {share} would leave no training example in task "
            f"'{printable(task.name)}': choose a smaller share, or fewer tasks."
        )
    lost = np.setdiff1d(labels[task.index], labels[kept]).tolist()
    classes = tuple(c for c in task.classes if c not in lost)
    return replace(task, classes=classes, index=kept)
