"""Rehearsal as a wrapper: any method, with a replay buffer of earlier images beside it.

Each step trains on the batch and on a sample of the buffer, over all classes seen so far; raw
images are stored, and augmented anew whenever they are replayed.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.core.types import Batch, RawBatch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
)
from promptax.methods.components.buffer import Buffer, extend
from promptax.nn.backbone import AbstractBackbone


class RehearsalState(eqx.Module):
    """The state of the wrapped method, and the replay buffer."""

    inner: PyTree
    buffer: Buffer


def _passed_on(hook: str) -> Any:
    """A hook of the wrapped method on its own part of the state; None if it has none."""

    def bind(self: "AbstractRehearsal") -> Any:
        inner_hook = getattr(self.method, hook)
        if inner_hook is None:
            return None

        def call(model: Any, state: RehearsalState, *given: Any, key: Key) -> Any:
            *batch, task = given
            model, inner = inner_hook(model, state.inner, *batch, _among_seen(task), key=key)
            return model, RehearsalState(inner, state.buffer)

        return call

    return property(bind)


def _among_seen(task: Task) -> Task:
    """The task with all classes seen so far in its class mask: the buffer has images of them."""
    return replace(task, competing=task.competing | task.seen)


class AbstractRehearsal(AbstractMethod):
    """A method that replays earlier images while it trains another method's model."""

    method: eqx.AbstractVar[Any]
    """The method that is trained, an `AbstractMethod`."""
    replay: eqx.AbstractVar[Replay]

    samples: ClassVar[int] = 1
    """How many samples of the buffer stand behind each batch."""
    stores_logits: ClassVar[bool] = False
    """Whether the buffer keeps the logits that an image had when it was stored."""

    def __check_init__(self):
        if not self.replay.buffer_size:
            raise UserError("rehearsal needs a buffer of at least 1 image, got 0.")
        name = type(self.method).__name__
        if self.method.loss is None or self.method.trainable is None:
            raise UserError(f"{name} takes no training steps, so nothing can be replayed in them.")
        if self.method.trains is not None:
            raise UserError(f"{name} learns only some tasks by steps, so it cannot replay images.")
        if self.method.recall is not None:
            raise UserError(f"{name} recalls examples itself, so it needs no other replay buffer.")

    @abstractmethod
    def objective(self, model: Any, state: Any, batch: Batch, task: Task, *, key: Key) -> StepLoss:
        """Compute the loss of a batch with replayed examples behind it.

        Args:
            model: The model of the wrapped method.
            state: The state of the wrapped method.
            batch: The task's examples, and behind them those of each sample of the buffer.
            task: The task; all classes seen so far compete.
            key: For the wrapped method.

        Returns:
            The loss; logits of the whole batch and the state of the wrapped method.
        """

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[PyTree, RehearsalState]:
        """Make the wrapped method's model and state, and an empty buffer."""
        model, inner = self.method.init(backbone, stream, key=key)
        buffer = Buffer.empty(self.replay, stream, logits=self.stores_logits)
        return model, RehearsalState(inner, buffer)

    def predict(
        self, model: Any, state: RehearsalState, images: ModelImages, query: Query
    ) -> Prediction:
        """Predict as the wrapped method does."""
        return self.method.predict(model, state.inner, images, query)

    def trainable(self, model: Any, task: Task) -> PyTree:
        """Train what the wrapped method trains."""
        return self.method.trainable(model, _among_seen(task))

    def recall(self, state: RehearsalState, batch: RawBatch, task: Task, *, key: Key) -> RawBatch:
        """Put samples of the buffer behind the batch."""
        size = self.replay.replay_batch
        keys = jr.split(key, self.samples)
        return extend(batch, *(state.buffer.sample(size, key=key) for key in keys))

    def loss(
        self, model: Any, state: RehearsalState, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Train on the whole batch, then offer the task's own examples to the buffer.

        `Replay.buffer_epochs` says in which epochs they are offered.
        """
        inner_key, buffer_key = jr.split(key)
        task = _among_seen(task)
        loss, (logits, inner) = self.objective(model, state.inner, batch, task, key=inner_key)
        own = len(batch.label) - self.samples * self.replay.replay_batch
        # Logits of a step that went wrong must not be stored.
        offered = self._is_offered(batch)[:own] & jnp.isfinite(loss)
        buffer = state.buffer.add(
            batch.raw[:own],
            batch.label[:own],
            jnp.where(offered, batch.weight[:own], 0),
            logits[:own],
            key=buffer_key,
        )
        return loss, (logits, RehearsalState(inner, buffer))

    def _is_offered(self, batch: Batch) -> Bool[Array, " batch"]:
        """Which examples may enter the buffer; those that were drawn from it may not."""
        epochs = self.replay.buffer_epochs
        if epochs == "first" or (epochs == "auto" and not self.stores_logits):
            return batch.is_new
        if batch.is_replayed is None:
            return jnp.ones_like(batch.is_new)
        return ~batch.is_replayed

    @property
    def query(self) -> Any:
        """The query of the wrapped method, if it has one."""
        return self.method.query

    begin_task = _passed_on("begin_task")
    observe = _passed_on("observe")
    end_task = _passed_on("end_task")


class Rehearsal(AbstractRehearsal):
    """Any method with a replay buffer: its own loss, over the batch and a sample of the buffer."""

    method: AbstractMethod
    """The method that is trained."""
    replay: Replay = Replay(buffer_size=500)
    """The buffer."""

    def objective(self, model: Any, state: Any, batch: Batch, task: Task, *, key: Key) -> StepLoss:
        """The loss of the wrapped method, over all examples alike."""
        return self.method.loss(model, state, batch, task, key=key)


def can_be_rehearsed(kind: type[AbstractMethod]) -> bool:
    """Whether `Rehearsal` takes methods of a class: those that learn every task by steps, and have
    no buffer of their own."""
    return kind.loss is not None and kind.trains is None and kind.recall is None


def unwrapped(method: AbstractMethod) -> AbstractMethod:
    """The method itself, without rehearsal around it."""
    return method.method if isinstance(method, AbstractRehearsal) else method
