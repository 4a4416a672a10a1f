"""Parameters that are set aside for each task, as rows along one axis of an array."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from promptax.core.types import Task


def own_row(tasks: int, task: Task) -> Bool[Array, " tasks"]:
    """Which of `tasks` rows belongs to the current task."""
    return jnp.arange(tasks) == task.index


def train_rows(
    rows: Bool[Array, " rows"], axis: int = 0
) -> Callable[[Array], Float32[Array, "..."]]:
    """A factor for `only` that trains some rows of a leaf and leaves the others alone.

    Args:
        rows: Which rows are trained.
        axis: The axis of the leaf that they lie along.
    """

    def factor(leaf: Array) -> Float32[Array, "..."]:
        shape = [1] * leaf.ndim
        shape[axis] = len(rows)
        return rows.astype(jnp.float32).reshape(shape)

    return factor


def own_columns(
    task: Task, reached: Bool[Array, " classes"] | None = None
) -> Float32[Array, " classes"]:
    """A factor for `only` that leaves alone the columns of a head that the task does not train.

    These are the columns of earlier classes under a class mask: no gradient reaches them, but
    weight decay and the momentum of earlier tasks would go on to change them.

    Args:
        task: The current task.
        reached: The classes whose logits have a gradient; those that compete if None.
    """
    reached = task.competing if reached is None else reached
    return jnp.where(task.seen & ~reached, 0.0, 1.0)
