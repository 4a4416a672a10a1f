"""A method on a stream, ready to take steps: the host's side of the compiled steps."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float32, PRNGKeyArray, PyTree

from promptax.core import sharding
from promptax.core.errors import UserError
from promptax.core.settings import Recipe
from promptax.core.types import RawBatch, Task
from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod, ModelImages, first_task, is_trained, no_query
from promptax.methods.rehearsal import AbstractRehearsal
from promptax.nn.apart import take_apart
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.cast import cast_frozen
from promptax.training.arguments import check_arguments
from promptax.training.optimizer import UpdateRule
from promptax.training.state import Faults, Metrics, TrainState
from promptax.training.steps import (
    Setup,
    begin_task_step,
    end_task_step,
    observe_step,
    place,
    review_step,
    train_step,
)


class Trainer(eqx.Module):
    """A method on a backbone and a stream, ready to take steps: what stays the same in a run.

    `fit` drives it through all tasks; use it yourself for single steps.
    """

    method: AbstractMethod
    recipe: Recipe = eqx.field(static=True)
    setup: Setup
    rule: UpdateRule
    query_dim: int = eqx.field(static=True)
    """Width of the method's queries; 0 if it has none."""

    @classmethod
    def create(
        cls,
        method: AbstractMethod,
        backbone: AbstractBackbone,
        stream: TaskStream,
        recipe: Recipe,
        *,
        mesh: Mesh | None = None,
        key: PRNGKeyArray,
    ) -> tuple["Trainer", TrainState]:
        """Make a trainer and its state before the first task.

        Args:
            method: The method.
            backbone: The pre-trained backbone.
            stream: The tasks to come; only sizes are taken from it.
            recipe: How the method is trained and measured.
            mesh: The devices; all that there are if None.
            key: The randomness of the whole run.

        Raises:
            UserError: Method and backbone or stream, or batch and mesh, do not fit together; or
                `trainable` is not a filter for the method's model.
        """
        check_arguments(method, stream, backbone, recipe)
        mesh = sharding.make_mesh() if mesh is None else mesh
        schedule = recipe.schedule
        sharding.check_divides(schedule.batch_size, mesh, "the batch size")
        init_key, run_key = jr.split(key)
        model, method_state = method.init(backbone, stream, key=init_key)
        params, frozen = eqx.partition(model, trainable_filter(method, model, first_task(stream)))
        # Once here rather than in every step; the bits of a forward pass are the same.
        frozen = cast_frozen(frozen)
        # Blocks that are split over devices are gathered, and so copied, anyway.
        if not sharding.is_split(mesh):
            frozen = take_apart(frozen)
        rule = UpdateRule.of(recipe.optimizer, schedule.batch_size, schedule.epochs)
        # Before they meet in a compiled function: they may lie on different devices.
        rule, *parts = place((rule, params, method_state, run_key), mesh)
        state = _initial_state(mesh, rule, *parts)
        setup = place(Setup(traced(method), frozen, recipe.images, mesh), mesh)
        return cls(method, recipe, setup, rule, _query_dim(method, model, recipe)), state

    @property
    def mesh(self) -> Mesh:
        """The mesh of devices that the steps run on."""
        return self.setup.mesh

    @property
    def takes_steps(self) -> bool:
        """Whether tasks are learned by optimizer steps."""
        return self.method.loss is not None

    @property
    def keeps_queries(self) -> bool:
        """Whether queries of training images are the same in every epoch, and computed once."""
        schedule = self.recipe.schedule
        has_queries = self.takes_steps and self.query_dim > 0
        comes_again = schedule.epochs > 1 and self.recipe.images.fixed
        return has_queries and comes_again and schedule.cache_queries

    def model(self, state: TrainState) -> PyTree:
        """The whole model, trained and frozen leaves."""
        return self.setup.model(state.params)

    def trains(self, task_number: int) -> bool:
        """Whether a task is learned by optimizer steps."""
        if self.method.trains is None:
            return self.takes_steps
        return self.takes_steps and self.method.trains(task_number)

    def steps(self, stream: TaskStream, task_number: int) -> int:
        """Number of optimizer steps for a task."""
        if not self.trains(task_number):
            return 0
        return self.recipe.schedule.steps(len(stream.tasks[task_number].index))

    def task(self, stream: TaskStream, task_number: int) -> Task:
        """A task of the stream as the compiled steps take it."""
        split = stream.tasks[task_number]
        seen = stream.seen(task_number)
        competing = {"task": split.classes, "seen": seen, "none": range(stream.num_classes)}
        task = Task.of(
            task_number,
            split.classes,
            num_classes=stream.num_classes,
            steps=self.steps(stream, task_number),
            seen=seen,
            competing=competing[self.recipe.class_mask],
            examples=len(split.index),
        )
        return sharding.replicate(task, self.mesh)

    def begin_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method prepare its model, and start the task's optimizer and schedule."""
        inputs = (self.setup, self.rule, task)
        return begin_task_step(inputs, state, self.recipe.optimizer.reset)

    def step(self, state: TrainState, batch: RawBatch, task: Task) -> tuple[TrainState, Metrics]:
        """Take one optimizer step; `state` is donated and must not be used again.

        Raises:
            UserError: The state was given to a step before.
        """
        if not isinstance(state.step, Tracer) and state.step.is_deleted():
            raise UserError(
                "this state was given to an earlier step, which has reused its memory: go on with "
                "the state that the step returned, or keep a copy of the state beforehand."
            )
        return train_step((self.setup, self.rule, batch, task), state)

    def review(self, state: TrainState, task: Task) -> TrainState:
        """Pass over the replay buffer once more after a task, if the settings ask for it."""
        if not isinstance(self.method, AbstractRehearsal) or not self.method.replay.review_epochs:
            return state
        passes = jnp.asarray(self.method.replay.review_epochs, jnp.int32)
        inputs = (self.setup, self.rule, task, sharding.replicate(passes, self.mesh))
        return review_step(inputs, state, self.recipe.schedule.batch_size)

    def observe(self, state: TrainState, stream: TaskStream, task_number: int) -> TrainState:
        """Show the method each training image of a task once, if it has a hook for that."""
        if self.method.observe is None:
            return state
        setup = self.setup.for_evaluation()
        task = self.task(stream, task_number)
        index = stream.tasks[task_number].index
        size = self.recipe.schedule.batch_size
        batches = TrainBatches(stream.train, index, size, epochs=1, seed=(task_number,))
        for number, host in enumerate(read_ahead(batches)):
            batch = sharding.put_batch(host, self.mesh)
            number = sharding.replicate(jnp.asarray(number, jnp.int32), self.mesh)
            state = observe_step((setup, batch, task, number), state)
        return state

    def end_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method conclude the task, if it has a hook for that."""
        if self.method.end_task is None:
            return state
        return end_task_step((self.setup.for_evaluation(), task), state)

    def batches(
        self,
        stream: TaskStream,
        task_number: int,
        *,
        seed: int,
        start: int = 0,
        queries: Float32[np.ndarray, "examples query"] | None = None,
    ) -> Iterator[RawBatch]:
        """The batches of a task on the devices; none for a task that is not learned by steps.

        Args:
            stream: The stream.
            task_number: Number of the task, from 0.
            seed: Seed of the order of examples.
            start: Number of the first batch, to go on with a task that has begun.
            queries: Queries of the task's images in their order, if they were computed before.
        """
        if not self.trains(task_number):
            return
        schedule = self.recipe.schedule
        order = TrainBatches(
            stream.train,
            stream.tasks[task_number].index,
            schedule.batch_size,
            schedule.epochs,
            seed=(seed, task_number),
            queries=queries,
        )
        for host in read_ahead(order, start):
            yield sharding.put_batch(host, self.mesh)


@eqx.filter_jit
def _initial_state(
    mesh: Mesh, rule: UpdateRule, params: PyTree, method_state: PyTree, key: PRNGKeyArray
) -> TrainState:
    """The state before the first task.

    It is donated at every step, so it may share no buffer with the model that the caller keeps.
    """
    params, method_state = jax.tree.map(jnp.copy, (params, method_state))
    state = TrainState(
        params=params,
        method_state=method_state,
        opt_state=rule.transform().init(params),
        step=jnp.zeros((), jnp.int32),
        task_step=jnp.zeros((), jnp.int32),
        key=key,
        faults=Faults.none(),
    )
    return place(state, mesh)


def traced(method: AbstractMethod) -> AbstractMethod:
    """The method with its floating-point hyperparameters as arrays, for compiled steps."""
    to_array = lambda leaf: jnp.asarray(leaf, jnp.float32) if isinstance(leaf, float) else leaf
    return jax.tree.map(to_array, method)


def trainable_filter(method: AbstractMethod, model: PyTree, task: Task) -> PyTree[bool]:
    """Which leaves of a model are trained, after a check of what `trainable` gives.

    Raises:
        UserError: The tree is not like the model, names nothing, names a leaf that no gradient can
            train, or holds a leaf of the model itself instead of a factor.
    """
    name = type(method).__name__
    if (method.trainable is None) != (method.loss is None):
        raise UserError(f"{name} has to define both `trainable` and `loss`, or neither of them.")
    if method.trainable is None:
        return jax.tree.map(lambda _: False, model)
    factors = method.trainable(model, task)
    if jax.tree.structure(factors) != jax.tree.structure(model):
        raise UserError(
            f"{name}.trainable does not return a tree like its model: build it with `only`."
        )
    leaves = jax.tree.leaves_with_path(model)
    for (path, leaf), factor in zip(leaves, jax.tree.leaves(factors), strict=True):
        _check_factor(f"{name}.trainable", jax.tree_util.keystr(path), leaf, factor)
    filters = is_trained(factors)
    if not any(jax.tree.leaves(filters)):
        raise UserError(
            f"{name}.trainable names no leaf of the model, so nothing would be trained: let it "
            "name one, or leave out `trainable` and `loss`."
        )
    return filters


def _check_factor(name: str, path: str, leaf: Any, factor: Any) -> None:
    if factor is False:
        return
    if not eqx.is_inexact_array(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct):
        kind = f"{leaf.dtype} array" if eqx.is_array(leaf) else type(leaf).__name__
        raise UserError(
            f"{name} names {path} ({kind}), but gradients train floating-point arrays only: give "
            "False for it."
        )
    # A tree that was made from the model itself, with factors put into some of its places.
    if factor is leaf:
        raise UserError(
            f"{name} gives the values of {path} as their own factor of the learning rate: use "
            "False for a frozen leaf and a number for a trained one."
        )
    shape = jnp.shape(factor)
    try:
        fits = jnp.broadcast_shapes(shape, leaf.shape) == leaf.shape
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"{name} gives a factor of shape {shape} for {path} of shape {leaf.shape}: it has to "
            "broadcast to the leaf."
        )


def _query_dim(method: AbstractMethod, model: PyTree, recipe: Recipe) -> int:
    side = recipe.images.size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    if method.query is None:
        return eqx.filter_eval_shape(no_query, image).shape[1]
    return eqx.filter_eval_shape(_query, method, model, image).shape[1]


@eqx.filter_jit
def _query(
    method: AbstractMethod, model: PyTree, images: ModelImages
) -> Float32[Array, "batch query"]:
    # Jitted so that a sweep over seeds traces it once.
    assert method.query is not None, "checked by the caller"
    return method.query(model, images)
