"""Few-shot class-incremental learning (Tao et al., CVPR 2020).

After a base session with all images of its classes, each session brings N
new classes with K images of each (N-way K-shot).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.split import Split


def session_sizes(classes: int, base: int, sessions: int, name: str) -> tuple[int, ...]:
    """The number of classes of each session.

    Args:
        classes: Number of classes in all.
        base: Number of classes of the base session.
        sessions: Number of sessions, with the base session.
        name: Of the stream, for errors.

    Raises:
        UserError: No class is left for later sessions, or those that are left do not divide evenly.
    """
    rest = classes - base
    if base < 1 or rest < 1:
        raise UserError(
            f"{name}: {base} base classes; expected at least 1 and fewer than the {classes} "
            "classes that there are."
        )
    later = sessions - 1
    if later < 1 or rest % later:
        counts = [str(1 + count) for count in range(1, rest + 1) if rest % count == 0]
        raise UserError(
            f"{name}: {base} base classes leave {rest} of {classes}, which {later} more tasks "
            f"cannot share evenly: the number of tasks can be {', '.join(counts)}."
        )
    return (base, *[rest // later] * later)


def with_few_shots(
    tasks: Sequence[Split],
    labels: Int[np.ndarray, " examples"],
    shots: int,
    *,
    class_names: Sequence[str],
    seed: int,
) -> tuple[Split, ...]:
    """All tasks after the first with only a few training examples of each class.

    Which examples of a class are drawn follows from the seed and the class alone, whatever task the
    class is in.

    Args:
        tasks: The training examples of each task.
        labels: The class of each example of the training source.
        shots: Number of examples of each class.
        class_names: By class number, for errors.
        seed: Of the draw.

    Raises:
        UserError: For fewer than one example of a class, more than a class has, or a negative seed.
    """
    if shots < 1:
        raise UserError(f"{shots} shots of each class; expected at least 1.")
    if seed < 0:
        raise UserError(f"seed of the draw of shots is {seed}; expected at least 0.")

    later = []
    for task in tasks[1:]:
        drawn = []
        for c in task.classes:
            examples = task.index[labels[task.index] == c]
            if len(examples) < shots:
                raise UserError(
                    f"class '{printable(class_names[c])}' has {len(examples)} training images, "
                    f"fewer than {shots} shots: choose fewer shots, or add images of it."
                )
            drawn.append(np.random.default_rng([seed, c]).permutation(examples)[:shots])
        later.append(replace(task, index=np.sort(np.concatenate(drawn))))
    return (tasks[0], *later)
