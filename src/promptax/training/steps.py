"""The compiled steps: every function here runs on the devices, and compiles once for all tasks.

Each takes what it only reads as its first argument, and donates the rest. What it reads are the
settings that it depends on, with numbers as traced values: a new learning rate, loss weight or
temperature does not compile it again, and neither does a setting of another step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh, use_abstract_mesh
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core import sharding
from promptax.core.errors import UserError
from promptax.core.settings import Images
from promptax.core.types import Batch, RawBatch, Task
from promptax.data.augment import mix, prepare_eval, prepare_train
from promptax.methods.base import AbstractMethod, Logits, ModelImages, is_trained, no_query
from promptax.methods.components.losses import weighted_mean
from promptax.nn.adapter import Adapter
from promptax.nn.apart import put_together
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.execution import training_blocks
from promptax.nn.lora import LoRA
from promptax.nn.scale_shift import ScaleShiftTuning
from promptax.nn.vit import Block
from promptax.training.optimizer import UpdateRule
from promptax.training.state import Draw, Metrics, TrainState


class Setup(eqx.Module):
    """The inputs that all steps share: a method on a backbone, and how images are prepared."""

    method: AbstractMethod
    """With its floating-point hyperparameters as arrays."""
    frozen: PyTree
    """The leaves of the model that are not trained, as they are stored for computing; None in the
    place of those that are trained."""
    images: Images = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    def for_evaluation(self) -> "Setup":
        """The same without what only training depends on, so that another value of that compiles
        nothing again."""
        return replace(self, images=self.images.for_evaluation())

    def model(self, params: PyTree) -> PyTree:
        """The whole model, trained and frozen leaves."""
        return eqx.combine(params, put_together(self.frozen))

    def filters(self, model: PyTree, task: Task) -> PyTree[bool]:
        """Which leaves of the model are trained."""
        if self.method.trainable is None:
            return jax.tree.map(lambda _: False, model)
        return is_trained(self.method.trainable(model, task))

    def factors(self, params: PyTree, task: Task) -> PyTree:
        """Factors of the learning rate for the trained leaves; None in the place of the others."""
        model = self.model(params)
        factors = self.method.trainable(model, task)
        return jax.tree.map(
            lambda leaf, factor: None if leaf is None else factor,
            params,
            factors,
            is_leaf=lambda leaf: leaf is None,
        )

    @contextmanager
    def on_mesh(self) -> Iterator[None]:
        """Let the blocks of a ViT know the mesh, so that their weights are gathered where they are
        split, rather than activations sent around."""
        with use_abstract_mesh(self.mesh.abstract_mesh):
            yield


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Split the blocks of a ViT (and what has their structure, such as optimizer moments) over the
    `model` axis; put everything else on every device."""
    return sharding.place(tree, mesh, is_stack)


def is_stack(node: Any) -> bool:
    """Whether a node holds the stacked blocks of a ViT."""
    return isinstance(node, Block)


@eqx.filter_jit(donate="all-except-first")
def train_step(
    inputs: tuple[Setup, UpdateRule, RawBatch, Task], state: TrainState
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step."""
    return _step(*inputs, state)


@eqx.filter_jit(donate="all-except-first")
def review_step(
    inputs: tuple[Setup, UpdateRule, Task, Int32[Array, ""]], state: TrainState, size: int
) -> TrainState:
    """Pass over the replay buffer after a task (Mai et al., 2020), by steps like those before.

    The buffer takes the place of the task's images, all classes seen so far compete, and the
    learning rate runs over its whole schedule once more.

    Args:
        inputs: What every step reads, the task, and the number of passes over the buffer.
        state: The state of a method with rehearsal.
        size: Examples of a step.
    """
    setup, rule, task, passes = inputs
    pages = state.method_state.buffer.pages(size)
    competing = task.competing | task.seen
    task = replace(task, classes=task.seen, competing=competing, steps=passes * pages)
    order = state.key_for(Draw.REVIEW, task.index)
    taken = state.task_step

    def step(number: Int32[Array, ""], state: TrainState) -> TrainState:
        key = jr.fold_in(order, number // pages)
        batch = state.method_state.buffer.page(number % pages, size, key=key)
        batch = eqx.filter_shard(batch, sharding.split(setup.mesh))
        return _step(setup, rule, batch, task, state, offers=False)[0]

    state = replace(state, task_step=jnp.zeros_like(taken))
    state = jax.lax.fori_loop(0, task.steps, step, state)
    return place(replace(state, task_step=taken), setup.mesh)


def _step(
    setup: Setup,
    rule: UpdateRule,
    raw: RawBatch,
    task: Task,
    state: TrainState,
    *,
    offers: bool = True,
) -> tuple[TrainState, Metrics]:
    """One optimizer step; `offers`: whether the batch comes from the task rather than from the
    replay buffer, which may then be offered its examples."""
    recall_key, prepare_key, loss_key = jr.split(state.key_for(Draw.STEP, state.step), 3)
    own = len(raw.label)
    position = state.task_step * own + jnp.arange(own)
    is_new = (position < task.examples) & offers
    raw = _with_recalled(setup, state.method_state, raw, task, recall_key)
    model = setup.model(state.params)
    with setup.on_mesh(), training_blocks(_trains_backbone(state.params)):
        is_replayed = (jnp.arange(len(raw.label)) >= own) | (not offers)
        batch = _prepared(setup, model, raw, is_new, is_replayed, prepare_key)
        (loss, (logits, method_state)), grads = _loss_and_grads(setup, state, batch, task, loss_key)
        factors = setup.factors(state.params, task)
    # What the task leaves alone has no part in the clip norm either.
    grads = jax.tree.map(lambda grad, factor: jnp.where(factor == 0, 0, grad), grads, factors)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss + norm)
    rate = rule.learning_rate(state.task_step, task.steps)
    rates = jax.tree.map(lambda factor: factor * rate, factors)
    updated = rule.update(state.params, state.opt_state, grads, norm, rates)
    params, opt_state = _choose(finite, updated, (state.params, state.opt_state))
    faults = state.faults.after(state.step, finite, grads)
    accuracy = _accuracy(logits[:own], batch, task)
    state = TrainState(
        params=params,
        method_state=method_state,
        opt_state=opt_state,
        step=state.step + 1,
        task_step=state.task_step + 1,
        key=state.key,
        faults=faults,
    )
    return place(state, setup.mesh), Metrics(loss, accuracy, norm, rate, faults.count)


def _trains_backbone(params: PyTree) -> bool:
    """Whether any leaf of a backbone, or of what is added to its kernels, is trained."""
    kinds = (AbstractBackbone, LoRA, Adapter, ScaleShiftTuning)
    belongs = lambda node: isinstance(node, kinds)
    parts = filter(belongs, jax.tree.leaves(params, is_leaf=belongs))
    return any(jax.tree.leaves(part) for part in parts)


def _with_recalled(
    setup: Setup, method_state: PyTree, raw: RawBatch, task: Task, key: PRNGKeyArray
) -> RawBatch:
    """The batch, with what a method recalls from its replay buffer behind it."""
    if setup.method.recall is None:
        return raw
    whole = setup.method.recall(method_state, raw, task, key=key)
    what = "a batch with what is replayed, of size"
    sharding.check_divides(len(whole.label), setup.mesh, what)
    return eqx.filter_shard(whole, sharding.split(setup.mesh))


def _prepared(
    setup: Setup,
    model: PyTree,
    raw: RawBatch,
    is_new: Bool[Array, " own"],
    is_replayed: Bool[Array, " batch"],
    key: PRNGKeyArray,
) -> Batch:
    """Augment and mix the images of a training batch, and compute the queries that are missing."""
    augment_key, mix_key = jr.split(key)
    images = prepare_train(raw.image, setup.images, augment_key)
    recalled = len(raw.label) - len(is_new)
    batch = Batch(
        images=images,
        label=raw.label,
        weight=raw.weight,
        query=no_query(images),
        raw=raw.image,
        is_new=jnp.pad(is_new, (0, recalled)),
        stored_logits=raw.stored_logits,
        is_replayed=is_replayed,
    )
    batch = mix(batch, setup.images.augment, mix_key)
    return replace(batch, query=_queries(setup.method, model, batch.images, raw.query))


def _queries(
    method: AbstractMethod,
    model: PyTree,
    images: ModelImages,
    known: Float32[Array, "known query"] | None,
) -> Float32[Array, "batch query"]:
    """The queries of a batch, of which the first may be known already."""
    if method.query is None:
        return no_query(images)
    if known is None:
        return method.query(model, images)
    if len(known) == len(images):
        return known
    return jnp.concatenate([known, method.query(model, images[len(known) :])])


def _loss_and_grads(
    setup: Setup, state: TrainState, batch: Batch, task: Task, key: PRNGKeyArray
) -> tuple[tuple[Float[Array, ""], tuple[Logits, PyTree]], PyTree]:
    """The loss with logits and the method's state, and the gradients of the trained leaves."""

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grads(params: PyTree) -> tuple[Float[Array, ""], tuple[Logits, PyTree]]:
        model = setup.model(params)
        return setup.method.loss(model, state.method_state, batch, task, key=key)

    return loss_and_grads(state.params)


def _accuracy(
    logits: Float32[Array, "own classes"], batch: Batch, task: Task
) -> Float32[Array, ""]:
    """Accuracy on the task's own examples, which come first in the batch.

    It is NaN where a single class competes: that guess is always right and says nothing.
    """
    own = len(logits)
    guess = jnp.where(task.competing, logits, -jnp.inf).argmax(1)
    is_right = guess == batch.main_label[:own]
    accuracy = weighted_mean(is_right.astype(jnp.float32), batch.weight[:own])
    return jnp.where(task.competing.sum() > 1, accuracy, jnp.nan)


def _choose(condition: Bool[Array, ""], first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda one, two: jnp.where(condition, one, two), first, second)


@eqx.filter_jit(donate="all-except-first")
def begin_task_step(
    inputs: tuple[Setup, UpdateRule, Task], state: TrainState, fresh: bool
) -> TrainState:
    """Let the method prepare for a task, and start the task's learning-rate schedule.

    Args:
        inputs: What every step reads, and the task.
        state: The state as the last task left it.
        fresh: Start with a new optimizer state.
    """
    setup, rule, task = inputs
    if setup.method.begin_task is not None:
        key = state.key_for(Draw.BEGIN_TASK, task.index)
        state = _apply(setup, "begin_task", state, task, (task,), key)
    opt_state = rule.transform().init(state.params) if fresh else state.opt_state
    state = replace(state, opt_state=opt_state, task_step=jnp.zeros((), jnp.int32))
    return place(state, setup.mesh)


@eqx.filter_jit(donate="all-except-first")
def observe_step(
    inputs: tuple[Setup, RawBatch, Task, Int32[Array, ""]], state: TrainState
) -> TrainState:
    """Show the method a batch of the pass at the end of a task; the last input is its number."""
    setup, raw, task, number = inputs
    key = jr.fold_in(state.key_for(Draw.OBSERVE, task.index), number)
    images = prepare_eval(raw.image, setup.images)
    with setup.on_mesh():
        query = _queries(setup.method, setup.model(state.params), images, None)
    batch = Batch(
        images=images,
        label=raw.label,
        weight=raw.weight,
        query=query,
        raw=raw.image,
        is_new=jnp.ones(len(raw.label), bool),
    )
    return place(_apply(setup, "observe", state, task, (batch, task), key), setup.mesh)


@eqx.filter_jit(donate="all-except-first")
def end_task_step(inputs: tuple[Setup, Task], state: TrainState) -> TrainState:
    """Let the method conclude a task."""
    setup, task = inputs
    key = state.key_for(Draw.END_TASK, task.index)
    return place(_apply(setup, "end_task", state, task, (task,), key), setup.mesh)


def _apply(
    setup: Setup,
    hook: str,
    state: TrainState,
    task: Task,
    arguments: tuple[Any, ...],
    key: PRNGKeyArray,
) -> TrainState:
    """Call a hook that may change model and state.

    Args:
        setup: What every step reads.
        hook: Name of the hook.
        state: The state before the hook.
        task: The current task.
        arguments: What the hook is given behind model and state.
        key: Its randomness.

    Raises:
        UserError: The hook changes a leaf of the model that `trainable` freezes. The change would
            be lost, because only trained leaves and the state are carried on.
    """
    before = setup.model(state.params)
    filters = setup.filters(before, task)
    with setup.on_mesh():
        call: Callable[..., tuple[PyTree, PyTree]] = getattr(setup.method, hook)
        after, method_state = call(before, state.method_state, *arguments, key=key)
    name = f"{type(setup.method).__name__}.{hook}"
    _check_frozen(name, before, after, filters)
    return replace(state, params=eqx.filter(after, filters), method_state=method_state)


def _check_frozen(name: str, before: PyTree, after: PyTree, filters: PyTree) -> None:
    """Compare the frozen leaves of the model as values of the trace: a hook passes them on."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise UserError(f"{name} returns a model of another structure than it was given.")
    frozen_before = jax.tree.leaves_with_path(eqx.filter(before, filters, inverse=True))
    frozen_after = jax.tree.leaves(eqx.filter(after, filters, inverse=True))
    for (path, old), new in zip(frozen_before, frozen_after, strict=True):
        if not _is_same(old, new):
            leaf = jax.tree_util.keystr(path)
            raise UserError(
                f"{name} changes {leaf} of the model, which `trainable` leaves frozen, so the "
                "change would be lost: keep it in the state, or make the leaf trainable."
            )


def _is_same(old: Any, new: Any) -> bool:
    """Whether a leaf is the same value of the trace, or an equal one that is no array."""
    if eqx.is_array(old) or eqx.is_array(new):
        return new is old
    return bool(new == old)


@eqx.filter_jit
def query_step(setup: Setup, params: PyTree, batch: RawBatch) -> Float32[Array, "batch query"]:
    """Compute the queries of a batch of images, prepared as for evaluation."""
    images = prepare_eval(batch.image, setup.images)
    with setup.on_mesh():
        return _queries(setup.method, setup.model(params), images, None)
