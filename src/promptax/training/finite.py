"""Checks that losses, gradients and weights are finite, and messages that say where they are not.

All leaves of a tree are looked at in one compiled function.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from promptax.core.errors import UserError
from promptax.training.state import TrainState, first_bad_leaf
from promptax.training.trainer import Trainer


class NonFinite(UserError):
    """Losses or gradients were not finite in more steps than may be skipped, or weights are not."""


def skipped(trainer: Trainer) -> int:
    """How many steps of a run may have a loss or gradient that is not finite."""
    return trainer.recipe.optimizer.skip_nonfinite


def check_steps(trainer: Trainer, state: TrainState, task_number: int) -> None:
    """Raise `NonFinite` with step, task and leaf if too many steps were not finite."""
    if int(state.faults.count) <= skipped(trainer):
        return
    step = 1 + int(state.faults.step)
    most = skipped(trainer)
    since = f"in more than {most} steps, first in step" if most else "since step"
    raise NonFinite(
        f"the loss is not finite {since} {step} (task {task_number + 1}; "
        f"{_origin(trainer, state)}): lower the learning rate, or look at the data and weights."
    )


def check_weights(state: TrainState, task_number: int) -> None:
    """Raise `NonFinite` if, at the end of a task, a trained weight is not finite or the method's
    state holds a NaN, such as a solution that does not exist.

    The state may hold infinities: distances to what is not known yet, say.
    """
    trees = (_floating(state.params), _floating(state.method_state))
    in_params, in_state = map(int, _bad_numbers(*trees))
    if in_params < 0 and in_state < 0:
        return
    if in_params >= 0:
        bad = _path(state.params, in_params)
    else:
        bad = f"state{_path(state.method_state, in_state)}"
    where = f"after the last step of task {task_number + 1}"
    raise NonFinite(f"{where}, weight {bad} is not finite.")


@eqx.filter_jit
def _bad_numbers(params: PyTree, method_state: PyTree) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    in_state = first_bad_leaf(method_state, lambda leaf: ~jnp.isnan(leaf))
    return first_bad_leaf(params), in_state


def _origin(trainer: Trainer, state: TrainState) -> str:
    """Where it began: a weight that is not finite, or else the gradient of one."""
    model = trainer.model(state)
    in_model = int(eqx.filter_jit(first_bad_leaf)(_floating(model)))
    if in_model >= 0:
        return f"weight {_path(model, in_model)} is not finite"
    in_gradients = int(state.faults.leaf)
    if in_gradients < 0:
        return "all weights and gradients are finite"
    path = _path(state.params, in_gradients)
    return f"all weights are finite, the gradient of {path} is not"


def _floating(tree: PyTree) -> PyTree:
    """The leaves that can be infinite or NaN."""
    return eqx.filter(tree, eqx.is_inexact_array)


def _path(tree: PyTree, number: int) -> str:
    """The path of a leaf as `first_bad_leaf` numbers those of `_floating`."""
    path, _ = jax.tree.leaves_with_path(_floating(tree))[number]
    return jax.tree_util.keystr(path)
