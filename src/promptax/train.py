"""The training loop: one compiled step for every task of every method."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax import sharding
from promptax.config import Optimizer, Recipe
from promptax.data.augment import mix, prepare_train
from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.method import AbstractMethod, weighted_mean
from promptax.nn.backbone import AbstractBackbone
from promptax.types import Batch, Task


class TrainState(eqx.Module):
    """All that a step changes, and so all that a checkpoint must hold."""

    params: PyTree
    """The trainable leaves; None in the place of every other."""
    opt_state: optax.OptState
    step: Int32[Array, ""]
    """Steps taken in the run."""
    task_step: Int32[Array, ""]
    """Steps taken in the current task."""
    key: PRNGKeyArray
    """Of the run; each step folds its number in."""
    bad_step: Int32[Array, ""]
    """The first step whose loss or gradient was not finite; -1 if none."""


class Metrics(eqx.Module):
    """What one step reports; it stays on the device until somebody reads it."""

    loss: Float32[Array, ""]
    accuracy: Float32[Array, ""]
    """Share of the batch classified rightly among the task's classes; a mixed example as the one
    of which it has more."""
    grad_norm: Float32[Array, ""]
    """Global norm over the trainable leaves, before clipping."""
    learning_rate: Float32[Array, ""]


class Trainer(eqx.Module):
    """A method on a backbone, ready to take steps: what stays the same during a run."""

    method: AbstractMethod
    frozen: PyTree
    """The leaves that are not trained; None in the place of those that are."""
    recipe: Recipe = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        method: AbstractMethod,
        backbone: AbstractBackbone,
        num_classes: int,
        recipe: Recipe,
        *,
        mesh: Mesh | None = None,
        key: PRNGKeyArray,
    ) -> tuple["Trainer", TrainState]:
        """A trainer and its state before the first task.

        Raises `UserError` where method and backbone, or batch and mesh, do not fit.
        """
        mesh = sharding.make_mesh() if mesh is None else mesh
        sharding.check_divides(recipe.schedule.batch_size, mesh, "the batch size")
        init, run = jr.split(key)
        model = method.init(backbone, num_classes, key=init)
        params, frozen = eqx.partition(model, method.trainable(model))
        # The state is donated at every step, so it may share no buffer with what stays.
        params = jax.tree.map(jnp.copy, params)
        step, task_step, bad_step = (jnp.asarray(n, jnp.int32) for n in (0, 0, -1))
        opt_state = transform(recipe.optimizer).init(params)
        state = TrainState(params, opt_state, step, task_step, run, bad_step)
        frozen, state = sharding.replicate((frozen, state), mesh)
        return cls(method, frozen, recipe, mesh), state

    def model(self, state: TrainState) -> PyTree:
        """The whole model, trained and frozen leaves."""
        return eqx.combine(state.params, self.frozen)

    def begin_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method prepare its model, and start the task's optimizer and schedule."""
        return _begin_task((self, task), state)

    def end_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method conclude the task."""
        return _end_task((self, task), state)

    def step(self, state: TrainState, batch: Batch, task: Task) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated and must not be used again."""
        return train_step((self, batch, task), state)

    def task(self, stream: TaskStream, stage: int) -> Task:
        """What the step needs to know of a stage."""
        split = stream.stages[stage]
        steps = self.recipe.schedule.steps(len(split.index))
        seen, count = stream.seen(stage), stream.num_classes
        task = Task.of(stage, split.classes, num_classes=count, steps=steps, seen=seen)
        return sharding.replicate(task, self.mesh)

    def train_stage(
        self, state: TrainState, stream: TaskStream, stage: int, *, seed: int, start: int = 0
    ) -> Iterator[tuple[TrainState, Metrics]]:
        """Take the steps of a stage, from number `start` on, and yield after each."""
        task = self.task(stream, stage)
        for batch in self.batches(stream, stage, seed=seed, start=start):
            state, metrics = self.step(state, batch, task)
            yield state, metrics

    def batches(
        self, stream: TaskStream, stage: int, *, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of a stage, on the devices."""
        index, schedule = stream.stages[stage].index, self.recipe.schedule
        order = TrainBatches(
            stream.train, index, schedule.batch_size, schedule.epochs, (seed, stage)
        )
        for host in read_ahead(order, start):
            yield sharding.put_batch(host, self.mesh)


@eqx.filter_jit(donate="all-except-first")
def train_step(inputs: tuple[Trainer, Batch, Task], state: TrainState):
    """The compiled step. `inputs` come first because they are not donated."""
    trainer, batch, task = inputs
    augment, method_key, mix_key = jr.split(jr.fold_in(state.key, state.step), 3)
    images = prepare_train(batch.image, trainer.recipe.images, augment)
    images, batch = mix(images, batch, trainer.recipe.images.augment, mix_key)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grad(params: PyTree) -> tuple[Float[Array, ""], Array]:
        model = eqx.combine(params, trainer.frozen)
        return trainer.method.loss(model, images, batch, task, key=method_key)

    (loss, logits), grads = loss_and_grad(state.params)
    norm = optax.tree.norm(grads)
    rate = learning_rate(trainer.recipe, state.task_step, task.steps)
    params, opt_state = _update(trainer.recipe.optimizer, state, grads, norm, rate)
    guess = jnp.where(task.classes, logits, -jnp.inf).argmax(1)
    accuracy = weighted_mean((guess == batch.main_label).astype(jnp.float32), batch.weight)
    bad = (state.bad_step < 0) & ~jnp.isfinite(loss + norm)
    state = TrainState(
        params,
        opt_state,
        state.step + 1,
        state.task_step + 1,
        state.key,
        jnp.where(bad, state.step, state.bad_step),
    )
    state = eqx.filter_shard(state, sharding.replicated(trainer.mesh))
    return state, Metrics(loss, accuracy, norm, rate)


@eqx.filter_jit(donate="all-except-first")
def _begin_task(inputs: tuple[Trainer, Task], state: TrainState) -> TrainState:
    trainer, task = inputs
    state = _with_model(state, trainer, lambda model: trainer.method.begin_task(model, task))
    opt_state = transform(trainer.recipe.optimizer).init(state.params)
    where = lambda state: (state.opt_state, state.task_step)
    if not trainer.recipe.optimizer.reset:
        opt_state = state.opt_state
    state = eqx.tree_at(where, state, (opt_state, jnp.zeros((), jnp.int32)))
    return eqx.filter_shard(state, sharding.replicated(trainer.mesh))


@eqx.filter_jit(donate="all-except-first")
def _end_task(inputs: tuple[Trainer, Task], state: TrainState) -> TrainState:
    trainer, task = inputs
    state = _with_model(state, trainer, lambda model: trainer.method.end_task(model, task))
    return eqx.filter_shard(state, sharding.replicated(trainer.mesh))


def _with_model(state: TrainState, trainer: Trainer, change: Callable[[Any], Any]) -> TrainState:
    model = change(trainer.model(state))
    params = eqx.filter(model, trainer.method.trainable(model))
    return eqx.tree_at(lambda state: state.params, state, params)


def transform(optimizer: Optimizer) -> optax.GradientTransformation:
    """The direction of the update; the step scales it by the traced learning rate."""
    if optimizer.name == "sgd":
        return optax.trace(optimizer.momentum, optimizer.nesterov)
    adam = optax.scale_by_adam(0.9, 0.999, 1e-8)
    if optimizer.name == "adam":
        return adam
    return optax.chain(adam, optax.add_decayed_weights(optimizer.weight_decay))


def learning_rate(
    recipe: Recipe, step: Int32[Array, ""], steps: Int32[Array, ""]
) -> Float32[Array, ""]:
    """`rate * batch / 256`, over the course of the task.

    The task's length is traced, so that tasks of other lengths do not compile again.
    """
    optimizer = recipe.optimizer
    peak = optimizer.learning_rate * recipe.schedule.batch_size / 256
    progress = step / steps
    rate = jnp.asarray(peak, jnp.float32)
    if optimizer.schedule == "cosine":
        after = (progress - optimizer.warmup) / max(1 - optimizer.warmup, 1e-6)
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(after, 0, 1)))
    if optimizer.warmup > 0:
        rate = rate * jnp.minimum((step + 1) / (steps * optimizer.warmup), 1)
    return rate.astype(jnp.float32)


def _update(optimizer: Optimizer, state: TrainState, grads: PyTree, norm, rate):
    if optimizer.clip_norm is not None:
        factor = jnp.minimum(1, optimizer.clip_norm / (norm + 1e-6))
        grads = jax.tree.map(lambda grad: grad * factor, grads)
    updates, opt_state = transform(optimizer).update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: -rate * update, updates)
    return eqx.apply_updates(state.params, updates), opt_state
