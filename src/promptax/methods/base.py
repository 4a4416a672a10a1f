"""The interface of a continual-learning method.

A method is an Equinox module whose fields are its hyperparameters. It owns no arrays: it makes a
*model* (what gradients train, and the frozen weights beneath it) and a *state* (everything else
that it carries from task to task), and the training loop passes both back to it.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core.fields import check_choices
from promptax.core.types import Task
from promptax.data.stream import TaskStream
from promptax.nn.backbone import AbstractBackbone, Statistics

ModelImages = Float32[Array, "batch size size 3"]
"""Images as a backbone takes them: resized, cropped and normalised."""
Logits = Float32[Array, "batch classes"]
"""Scores of all classes of a stream; no mask is applied."""
Query = Float32[Array, "batch query"]
"""Features from frozen weights; of width 0 for a method without a query."""
Loss = Float[Array, ""]
StepLoss = tuple[Loss, tuple[Logits, Any]]
"""The result of a training step: the loss, and the logits and the state after the step."""
Key = PRNGKeyArray
"""A PRNG key; each call of a hook gets one of its own."""
Scalar = float | Float[Array, ""]
"""A number: a hyperparameter is a Python float in a method that a user holds, and a traced array
inside compiled steps, so that another value does not compile them again."""
Factor = Scalar | Array | Callable[[Array], Any]
"""A factor of the learning rate: one for a whole leaf, an array that broadcasts to it, or a
function from the leaf to either."""


class Prediction(eqx.Module):
    """The answer of a method to a batch of images."""

    logits: Logits
    selected: Int32[Array, "batch top_k"] | None = None
    """Which prompts (or which task's parameters) each image was given, for reports; None if the
    method does not choose."""


def optional() -> Any:
    """Declare a hook that a method may define.

    An undefined hook is None, so the loop can tell that there is nothing to run; and no class
    ever overrides the code of another one.
    """
    return None


class AbstractMethod(eqx.Module):
    """A continual-learning method: two functions that every method has, and eight optional hooks.

    A method that defines neither `trainable` nor `loss` takes no optimizer steps (nearest class
    mean, say). Methods are values: two with equal settings share one compiled step, and so do two
    that differ in floating-point settings only.

    Every hook but `init` and `trains` runs inside a compiled step. Its key is unique to the run,
    task and step.
    """

    def __check_init__(self):
        check_choices(self)

    @abstractmethod
    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[PyTree, PyTree]:
        """Make model and state as they are before the first task, in their final size.

        Args:
            backbone: The pre-trained backbone.
            stream: The tasks to come. Only sizes may be taken from it (`num_classes`, number and
                sizes of `tasks`), never images or labels.
            key: Randomness for the initial values.

        Returns:
            The model, whose leaves `trainable` divides into trained and frozen ones, and the
            state, which no gradient trains. Both keep their tree structure, shapes and dtypes.

        Raises:
            UserError: The hyperparameters do not fit the backbone or the stream.
        """

    @abstractmethod
    def predict(self, model: Any, state: Any, images: ModelImages, query: Query) -> Prediction:
        """Compute logits of all classes for each image by itself, without knowing its task.

        Args:
            model: The model as the last task left it.
            state: The state as the last task left it.
            images: Prepared images.
            query: `self.query(model, images)`, or of width 0 if there is no query.
        """

    trainable = optional()
    """`trainable(model, task) -> PyTree`: which leaves gradients train.

    A tree like the model. False freezes a leaf; a number is its factor of the learning rate; an
    array that broadcasts to the leaf gives each entry its own, and where that is 0 the current
    task leaves the entry alone: no gradient, no share in the clip norm, no weight decay. `only`
    and `union` build such trees. Which leaves are False must not depend on the task.
    """

    loss = optional()
    """`loss(model, state, batch, task, *, key) -> (loss, (logits, state))`: one training step.

    `batch` is a `Batch` of prepared images (behind those of the task come the examples that
    `recall` added). Only classes of `task.competing` should compete. `logits` are for the training
    accuracy. The state is returned as it is after the step, and is kept even if the update of the
    step is skipped because the loss is not finite.
    """

    trains = optional()
    """`trains(task_number) -> bool`: whether a task is learned by training steps.

    If it is undefined, every task is, provided that there is a `loss`. `begin_task`, `observe` and
    `end_task` are called for a task without steps, too.
    """

    query = optional()
    """`query(model, images) -> Float32[Array, "batch query"]`: features from frozen weights.

    Whatever `loss` and `predict` need to know about an image that training does not change, such as
    the query of a prompt pool. If images are not augmented, it is computed only once per image in a
    run. It is never differentiated.
    """

    recall = optional()
    """`recall(state, batch, task, *, key) -> RawBatch`: the batch with examples from a replay
    buffer behind it, before images are prepared."""

    begin_task = optional()
    """`begin_task(model, state, task, *, key) -> (model, state)`: prepare for a task."""

    observe = optional()
    """`observe(model, state, batch, task, *, key) -> (model, state)`: called after the steps of a
    task for each batch of one more pass over its training images, prepared as for evaluation.
    Feature statistics are collected here."""

    end_task = optional()
    """`end_task(model, state, task, *, key) -> (model, state)`: conclude a task.

    Here and in the other hooks only trainable leaves of the model may change; anything else that
    has to change belongs in the state.
    """


def only(model: PyTree, where: Callable[[Any], Any], factor: Factor = 1.0) -> PyTree:
    """Build a tree for `AbstractMethod.trainable` that trains some parts of a model.

    Args:
        model: The model.
        where: Picks the parts to train, as `equinox.tree_at` takes it.
        factor: Factor of the learning rate for each leaf in these parts.

    Returns:
        A tree like the model: `factor` for floating-point arrays in the parts that `where` picks
        (except `Statistics`, which are data), False for all other leaves.
    """

    def factors(part: PyTree) -> PyTree:
        is_statistics = lambda node: isinstance(node, Statistics)
        return jax.tree.map(factor_of, part, is_leaf=is_statistics)

    def factor_of(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            # A whole `Statistics` node becomes a tree of its own, to keep the structure.
            return jax.tree.map(lambda _: False, leaf)
        return factor(leaf) if callable(factor) else factor

    nowhere = jax.tree.map(lambda _: False, model)
    picked = [factors(part) for part in _as_parts(where(model))]
    is_none = lambda leaf: leaf is None
    return eqx.tree_at(lambda tree: _as_parts(where(tree)), nowhere, picked, is_leaf=is_none)


def _as_parts(picked: Any) -> list[Any]:
    """The parts that a `where` picks, as a list, whether it picks one or several."""
    return list(picked) if type(picked) in (tuple, list) else [picked]


def union(*filters: PyTree) -> PyTree:
    """Combine trees of `only`: a leaf takes the first factor that is not False."""

    def first(*factors: Any) -> Any:
        return next((factor for factor in factors if factor is not False), False)

    return jax.tree.map(first, *filters)


def no_query(images: ModelImages) -> Float32[Array, "batch 0"]:
    """The query of a method, or of a configuration of it, that needs none."""
    return jnp.zeros((images.shape[0], 0))


def first_task(stream: TaskStream) -> Task:
    """The first task of a stream, for what needs a task before training has begun."""
    return Task.of(0, stream.tasks[0].classes, num_classes=stream.num_classes, steps=0)


def is_trained(factors: PyTree) -> PyTree[bool]:
    """The filter, as `equinox.partition` takes it, for a tree of `AbstractMethod.trainable`."""
    return jax.tree.map(lambda factor: factor is not False, factors)
