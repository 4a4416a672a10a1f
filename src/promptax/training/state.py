"""All that changes during a run."""

import enum
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, PyTree


class Draw(enum.IntEnum):
    """Purposes that randomness is drawn for; each has a stream of keys of its own."""

    STEP = 0
    BEGIN_TASK = 1
    OBSERVE = 2
    END_TASK = 3
    REVIEW = 4


class Faults(eqx.Module):
    """Steps whose loss or gradient was not finite; their updates were not applied."""

    count: Int32[Array, ""]
    step: Int32[Array, ""]
    """The first of them; -1 if none."""
    leaf: Int32[Array, ""]
    """The number of the first trained leaf whose gradient was not finite in it; -1 if none."""

    @classmethod
    def none(cls) -> "Faults":
        """The record before any fault."""
        return cls(
            count=jnp.asarray(0, jnp.int32),
            step=jnp.asarray(-1, jnp.int32),
            leaf=jnp.asarray(-1, jnp.int32),
        )

    def after(self, step: Int32[Array, ""], finite: Bool[Array, ""], grads: PyTree) -> "Faults":
        """The faults after one more step.

        Args:
            step: Number of the step in the run.
            finite: Whether loss and gradient norm are finite.
            grads: The gradients.
        """
        is_first = ~finite & (self.count == 0)
        # Looking at every leaf costs time, so it is done only if it is needed.
        leaf = jax.lax.cond(is_first, first_bad_leaf, lambda grads: self.leaf, grads)
        count = self.count + ~finite
        return Faults(count.astype(jnp.int32), jnp.where(is_first, step, self.step), leaf)


def first_bad_leaf(
    tree: PyTree, is_good: Callable[[Array], Bool[Array, "..."]] = jnp.isfinite
) -> Int32[Array, ""]:
    """The number of the first leaf with a bad value; -1 if all are good."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.asarray(-1, jnp.int32)
    bad = jnp.stack([~is_good(leaf).all() for leaf in leaves])
    return jnp.where(bad.any(), bad.argmax(), -1).astype(jnp.int32)


class TrainState(eqx.Module):
    """All that a step changes, and so all that a checkpoint must hold."""

    params: PyTree
    """The trained leaves of the model; None in the place of every other."""
    method_state: PyTree
    """Everything that the method carries from task to task besides its model."""
    opt_state: optax.OptState
    step: Int32[Array, ""]
    """Steps taken in the run."""
    task_step: Int32[Array, ""]
    """Steps taken in the current task."""
    key: PRNGKeyArray
    """The key of the run, from which all others are derived."""
    faults: Faults

    def key_for(self, purpose: Draw, number: Int32[Array, ""]) -> PRNGKeyArray:
        """The key for the n-th time that randomness is drawn for a purpose."""
        return jr.fold_in(jr.fold_in(self.key, purpose), number)


class Metrics(eqx.Module):
    """The report of one step; it stays on the device until somebody reads it."""

    loss: Float32[Array, ""]
    accuracy: Float32[Array, ""]
    """Share of the batch classified correctly among the classes that compete in the loss; a mixed
    example counts as the one that it has more of. NaN if there is only one such class."""
    grad_norm: Float32[Array, ""]
    """Global norm over the trained leaves, before clipping."""
    learning_rate: Float32[Array, ""]
    faults: Int32[Array, ""]
    """Steps so far whose loss or gradient was not finite."""

    def __repr__(self) -> str:
        if any(isinstance(value, Tracer) for value in jax.tree.leaves(self)):
            return super().__repr__()  # inside a compiled step there is no number yet
        return (
            f"Metrics(loss {float(self.loss):.4f}, accuracy {100 * float(self.accuracy):.1f} %, "
            f"gradient norm {float(self.grad_norm):.3g}, "
            f"learning rate {float(self.learning_rate):.3g}, {int(self.faults)} faults)"
        )
