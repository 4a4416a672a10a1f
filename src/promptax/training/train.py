"""The training loop: one compiled step for every task of every method."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh, use_abstract_mesh
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core import sharding
from promptax.core.settings import Optimizer, Recipe
from promptax.core.types import Batch, Task
from promptax.data.augment import mix, prepare_eval, prepare_train
from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod, weighted_mean
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import Block
from promptax.training.optimizer import learning_rate, transform, update


class Faults(eqx.Module):
    """Steps whose loss or gradient was not finite; their updates were not applied."""

    count: Int32[Array, ""]
    step: Int32[Array, ""]
    """The first of them; -1 if none."""
    leaf: Int32[Array, ""]
    """The number of the first trainable leaf whose gradient was not finite in it; -1 if none."""

    @classmethod
    def none(cls) -> "Faults":
        """Before the first step."""
        return cls(*(jnp.asarray(n, jnp.int32) for n in (0, -1, -1)))

    def after(self, step: Int32[Array, ""], finite: Bool[Array, ""], grads: PyTree) -> "Faults":
        """With one more step."""
        first = ~finite & (self.count == 0)
        # Looking at every leaf costs time, so it is done only where it is needed.
        leaf = jax.lax.cond(first, _first_bad, lambda grads: self.leaf, grads)
        count = self.count + ~finite
        return Faults(count.astype(jnp.int32), jnp.where(first, step, self.step), leaf)


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
    faults: Faults
    memory: PyTree
    """What the method remembers besides its model."""


class Metrics(eqx.Module):
    """What one step reports; it stays on the device until somebody reads it."""

    loss: Float32[Array, ""]
    accuracy: Float32[Array, ""]
    """Share of the batch classified rightly among the task's classes; a mixed example as the one
    of which it has more."""
    grad_norm: Float32[Array, ""]
    """Global norm over the trainable leaves, before clipping."""
    learning_rate: Float32[Array, ""]
    faults: Int32[Array, ""]
    """Steps so far whose loss or gradient was not finite."""


class Trainer(eqx.Module):
    """A method on a backbone, ready to take steps: what stays the same during a run."""

    method: AbstractMethod
    frozen: PyTree
    """The leaves that are not trained; None in the place of those that are."""
    recipe: Recipe = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)
    query_dim: int = eqx.field(static=True)
    """Width of the method's queries; 0 if it has none."""

    @classmethod
    def create(
        cls,
        method: AbstractMethod,
        backbone: AbstractBackbone,
        num_classes: int,
        recipe: Recipe,
        *,
        stream: TaskStream | None = None,
        mesh: Mesh | None = None,
        key: PRNGKeyArray,
    ) -> tuple["Trainer", TrainState]:
        """A trainer and its state before the first task.

        A method's memory is sized by the `stream`: without one, it has none. Raises `UserError`
        where method and backbone or stream, or batch and mesh, do not fit.
        """
        mesh = sharding.make_mesh() if mesh is None else mesh
        sharding.check_divides(recipe.schedule.batch_size, mesh, "the batch size")
        init, run = jr.split(key)
        model = method.init(backbone, num_classes, key=init)
        params, frozen = eqx.partition(model, method.trainable(model))
        memory = None if stream is None else method.memory(model, stream)
        # The state is donated at every step, so it may share no buffer with what stays.
        params, memory = jax.tree.map(jnp.copy, (params, memory))
        step, task_step = (jnp.zeros((), jnp.int32) for _ in range(2))
        opt_state = _fresh(method, recipe.optimizer, params)
        state = TrainState(params, opt_state, step, task_step, run, Faults.none(), memory)
        frozen, state = place((frozen, state), mesh)
        return cls(method, frozen, recipe, mesh, _query_dim(method, model, recipe)), state

    @property
    def keeps_queries(self) -> bool:
        """Whether queries of training images are the same in every epoch, and computed once."""
        schedule, has_any = self.recipe.schedule, self.method.steps and self.query_dim > 0
        again = schedule.epochs > 1 and self.recipe.images.fixed
        return has_any and again and schedule.cache_queries

    def model(self, state: TrainState) -> PyTree:
        """The whole model, trained and frozen leaves."""
        return eqx.combine(state.params, self.frozen)

    def begin_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method prepare its model, and start the task's optimizer and schedule."""
        return _begin_task((self, task), state)

    def end_task(self, state: TrainState, task: Task) -> TrainState:
        """Let the method conclude the task."""
        return _end_task((self, task), state)

    def review(self, state: TrainState, task: Task) -> TrainState:
        """Pass over the buffer once more, where the method asks for that."""
        return review((self, task), state) if self.method.reviews else state

    def step(self, state: TrainState, batch: Batch, task: Task) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated and must not be used again."""
        return train_step((self, batch, task), state)

    def observe(self, state: TrainState, stream: TaskStream, stage: int) -> TrainState:
        """Show the method each training image of a stage once, where it asks for that."""
        if not self.method.observes:
            return state
        task, index = self.task(stream, stage), stream.stages[stage].index
        batches = TrainBatches(stream.train, index, self.recipe.schedule.batch_size, 1, (stage,))
        for number, host in enumerate(read_ahead(batches)):
            batch = sharding.put_batch(host, self.mesh)
            number = sharding.replicate(jnp.asarray(number, jnp.int32), self.mesh)
            state = observe_step((self, batch, task, number), state)
        return state

    def steps(self, examples: int) -> int:
        """Optimizer steps for a task of so many examples."""
        return self.recipe.schedule.steps(examples) if self.method.steps else 0

    def task(self, stream: TaskStream, stage: int) -> Task:
        """What the step needs to know of a stage."""
        split = stream.stages[stage]
        task = Task.of(
            stage,
            split.classes,
            num_classes=stream.num_classes,
            steps=self.steps(len(split.index)),
            seen=stream.seen(stage),
            examples=len(split.index),
        )
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
        self,
        stream: TaskStream,
        stage: int,
        *,
        seed: int,
        start: int = 0,
        queries: Float32[np.ndarray, "examples query"] | None = None,
    ) -> Iterator[Batch]:
        """The batches of a stage, on the devices, with their `training_queries` where these are
        given; none for a method that takes no steps."""
        if not self.method.steps:
            return
        index, schedule = stream.stages[stage].index, self.recipe.schedule
        order = TrainBatches(
            stream.train, index, schedule.batch_size, schedule.epochs, (seed, stage), queries
        )
        for host in read_ahead(order, start):
            yield sharding.put_batch(host, self.mesh)


def _query_dim(method: AbstractMethod, model: PyTree, recipe: Recipe) -> int:
    side = recipe.images.size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return eqx.filter_eval_shape(method.query, model, image).shape[1]


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Blocks and their moments split over `model`, all else on every device."""
    return sharding.place(tree, mesh, _is_stack)


def compile_step(
    create: Callable[[], tuple[Trainer, TrainState]], num_classes: int, image: tuple[int, int, int]
) -> jax.stages.Compiled:
    """The step of what `create` gives, for raw images of a shape, compiled and not run.

    Not even weights are made, so that the memory that a step takes on each device
    (`.memory_analysis()`) can be asked for on a machine that does not have it.
    """
    trainer, state = eqx.filter_eval_shape(create)
    size, where = trainer.recipe.schedule.batch_size, sharding.split(trainer.mesh)
    images, ones = jax.ShapeDtypeStruct((size, *image), jnp.uint8), jnp.ones(size)
    batch = eqx.filter_eval_shape(Batch, images, ones.astype(jnp.int32), ones)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)
    task = eqx.filter_eval_shape(lambda: Task.of(0, (0,), num_classes=num_classes, steps=1))
    trainer, state, task = sharding.abstract((trainer, state, task), trainer.mesh, _is_stack)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    inputs, fixed = eqx.partition((trainer, batch, task), is_shape)
    step = lambda inputs, state: train_step(eqx.combine(inputs, fixed), state)
    return jax.jit(step, donate_argnums=1).lower(inputs, state).compile()


def _is_stack(node: Any) -> bool:
    return isinstance(node, Block)


@eqx.filter_jit(donate="all-except-first")
def train_step(inputs: tuple[Trainer, Batch, Task], state: TrainState):
    """The compiled step. `inputs` come first because they are not donated."""
    return _step(*inputs, state)


@eqx.filter_jit(donate="all-except-first")
def review(inputs: tuple[Trainer, Task], state: TrainState) -> TrainState:
    """The compiled passes over the buffer after a task.

    They take the same steps, with the buffer in the place of the task's images, over all classes
    seen, and with a course of the learning rate of their own.
    """
    trainer, task = inputs
    buffer, size = state.memory, trainer.recipe.schedule.batch_size
    pages = buffer.pages(size)
    # Nothing is offered to the buffer, whose examples the task then has none of.
    task = replace(
        task, classes=task.seen, steps=trainer.method.reviews * pages, examples=0 * pages
    )
    # As for a task that is observed: no step has that number.
    key, taken = jr.fold_in(state.key, 2**32 - 2), state.task_step

    def step(number: Int32[Array, ""], state: TrainState) -> TrainState:
        order = jr.fold_in(jr.fold_in(key, task.index), number // pages)
        batch = state.memory.page(number % pages, size, key=order)
        return _step(trainer, eqx.filter_shard(batch, sharding.split(trainer.mesh)), task, state)[0]

    state = replace(state, task_step=jnp.zeros_like(taken))
    state = jax.lax.fori_loop(0, task.steps, step, state)
    return place(replace(state, task_step=taken), trainer.mesh)


def _step(
    trainer: Trainer, batch: Batch, task: Task, state: TrainState
) -> tuple[TrainState, Metrics]:
    augment, method_key, mix_key, recall_key, remember_key = jr.split(
        jr.fold_in(state.key, state.step), 5
    )
    whole = _recalled(trainer, state.memory, batch, task, recall_key)
    images = prepare_train(whole.image, trainer.recipe.images, augment)
    images, whole = mix(images, whole, trainer.recipe.images.augment, mix_key)
    (loss, logits), grads = _loss_and_grads(trainer, task, state, images, whole, key=method_key)
    norm = optax.tree.norm(grads)
    rate = learning_rate(trainer.recipe, state.task_step, task.steps)
    finite = jnp.isfinite(loss + norm)
    unchanged = state.params, state.opt_state
    params, opt_state = _choose(
        finite, _updated(trainer, task, state, grads, norm, rate), unchanged
    )
    own = logits[: len(batch.label)]
    new = _first_pass(task, state, batch) & finite
    offered = replace(batch, weight=jnp.where(new, batch.weight, 0))
    memory = trainer.method.remember(state.memory, offered, own, task, key=remember_key)
    faults = state.faults.after(state.step, finite, grads)
    step, task_step = state.step + 1, state.task_step + 1
    accuracy = _accuracy(own, batch, whole, task)
    state = TrainState(params, opt_state, step, task_step, state.key, faults, memory)
    return place(state, trainer.mesh), Metrics(loss, accuracy, norm, rate, faults.count)


def _loss_and_grads(
    trainer: Trainer,
    task: Task,
    state: TrainState,
    images: Float[Array, "batch height width channel"],
    batch: Batch,
    *,
    key: PRNGKeyArray,
) -> tuple[tuple[Float[Array, ""], Float32[Array, "batch classes"]], PyTree]:
    """Loss and logits, and the gradients of the leaves that are trained, of which a task may have
    no more than a share."""
    method = trainer.method

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grads(params: PyTree) -> tuple[Float[Array, ""], Array]:
        model = eqx.combine(params, trainer.frozen)
        return method.objective(model, state.memory, images, batch, task, key=key)

    with use_abstract_mesh(trainer.mesh.abstract_mesh):
        value, grads = loss_and_grads(state.params)
    share = method.share(state.params, task)
    return value, _shared(share, grads, jax.tree.map(jnp.zeros_like, grads))


def _updated(
    trainer: Trainer,
    task: Task,
    state: TrainState,
    grads: PyTree,
    norm: Float32[Array, ""],
    rate: Float32[Array, ""],
) -> tuple[PyTree, optax.OptState]:
    method, optimizer = trainer.method, trainer.recipe.optimizer
    rates = jax.tree.map(lambda factor: factor * rate, method.rates(trainer.model(state)))
    params, opt_state = update(optimizer, state.params, state.opt_state, grads, norm, rates)
    # Where a task has no share of an entry, momentum and weight decay leave it alone as well.
    return _shared(method.share(state.params, task), params, state.params), opt_state


def _first_pass(task: Task, state: TrainState, batch: Batch) -> Bool[Array, " batch"]:
    """Which examples the task shows for the first time."""
    count = len(batch.label)
    return state.task_step * count + jnp.arange(count) < task.examples


def _accuracy(
    logits: Float32[Array, "batch classes"], batch: Batch, mixed: Batch, task: Task
) -> Float32[Array, ""]:
    guess = jnp.where(task.classes, logits, -jnp.inf).argmax(1)
    right = guess == mixed.main_label[: len(guess)]
    return weighted_mean(right.astype(jnp.float32), batch.weight)


@eqx.filter_jit(donate="all-except-first")
def observe_step(
    inputs: tuple[Trainer, Batch, Task, Int32[Array, ""]], state: TrainState
) -> TrainState:
    """The compiled step of the pass at the end of a task, of a batch with its number."""
    trainer, batch, task, number = inputs
    # The last key that `fold_in` can make: no step has that number.
    key = jr.fold_in(jr.fold_in(jr.fold_in(state.key, 2**32 - 1), task.index), number)
    images = prepare_eval(batch.image, trainer.recipe.images)
    model = trainer.model(state)
    memory = trainer.method.observe(model, state.memory, images, batch, task, key=key)
    return place(replace(state, memory=memory), trainer.mesh)


def _recalled(
    trainer: Trainer, memory: PyTree, batch: Batch, task: Task, key: PRNGKeyArray
) -> Batch:
    whole = trainer.method.recall(memory, batch, task, key=key)
    if len(whole.label) == len(batch.label):
        return whole
    what = "a batch with what is replayed, of size"
    sharding.check_divides(len(whole.label), trainer.mesh, what)
    return eqx.filter_shard(whole, sharding.split(trainer.mesh))


@eqx.filter_jit(donate="all-except-first")
def _begin_task(inputs: tuple[Trainer, Task], state: TrainState) -> TrainState:
    trainer, task = inputs
    state = _changed(state, trainer, task, trainer.method.begin_task)
    opt_state = _fresh(trainer.method, trainer.recipe.optimizer, state.params)
    where = lambda state: (state.opt_state, state.task_step)
    if not trainer.recipe.optimizer.reset:
        opt_state = state.opt_state
    state = eqx.tree_at(where, state, (opt_state, jnp.zeros((), jnp.int32)))
    return place(state, trainer.mesh)


@eqx.filter_jit(donate="all-except-first")
def _end_task(inputs: tuple[Trainer, Task], state: TrainState) -> TrainState:
    trainer, task = inputs
    state = _changed(state, trainer, task, trainer.method.end_task)
    return place(state, trainer.mesh)


def _changed(
    state: TrainState,
    trainer: Trainer,
    task: Task,
    change: Callable[[Any, Any, Task], tuple[PyTree, PyTree]],
) -> TrainState:
    model, memory = change(trainer.model(state), state.memory, task)
    params = eqx.filter(model, trainer.method.trainable(model))
    return replace(state, params=params, memory=memory)


def _fresh(method: AbstractMethod, optimizer: Optimizer, params: PyTree) -> optax.OptState:
    """The optimizer's state at the start of a task; without steps there is nothing to hold."""
    return transform(optimizer).init(params if method.steps else {})


def _choose(condition: Bool[Array, ""], first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda one, two: jnp.where(condition, one, two), first, second)


def _shared(share: PyTree | None, own: PyTree, others: PyTree) -> PyTree:
    """The first tree where a task has a share, the second elsewhere."""
    return own if share is None else jax.tree.map(jnp.where, share, own, others)


def _first_bad(tree: PyTree) -> Int32[Array, ""]:
    """The number of the first leaf that is not finite; -1 if all are."""
    bad = jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
    return jnp.where(bad.any(), bad.argmax(), -1).astype(jnp.int32)
