"""The common part of L2P and DualPrompt: a ViT whose prompts are chosen from a pool."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
    no_query,
)
from promptax.methods.components.growth import for_longer_stream
from promptax.methods.components.losses import cross_entropy, weighted_mean
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import Vote
from promptax.nn.prompted import PromptedViT


class AbstractPoolMethod(AbstractMethod):
    """A method over `nn.PromptedViT`; its fields say how prompts are chosen and trained.

    Only with these methods can images vote: groups of images then agree on their prompts.
    """

    pool_size: eqx.AbstractVar[int]
    top_k: eqx.AbstractVar[int]
    pull: eqx.AbstractVar[float]
    vote_group: eqx.AbstractVar[int | None]
    task_mask: eqx.AbstractVar[bool]
    transfer_prompts: eqx.AbstractVar[bool]
    transfer_keys: eqx.AbstractVar[bool]

    def __check_init__(self):
        if not abs(self.pull) <= LARGEST:
            raise UserError(f"pull is {self.pull}; expected -{LARGEST:g} to {LARGEST:g}.")
        if self.vote_group is not None and self.vote_group < 1:
            raise UserError(f"vote group is {self.vote_group}; expected at least 1.")

    @property
    @abstractmethod
    def has_pool(self) -> bool:
        """Whether the settings give the method a pool: DualPrompt can do without."""

    @abstractmethod
    def model(self, backbone: AbstractBackbone, num_classes: int, *, key: Key) -> PromptedViT:
        """Make the prompted ViT with a zero head. Raises `UserError` if the prompts do not fit."""

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[PromptedViT, None]:
        """Make the prompted ViT; there is no state."""
        return self.model(backbone, stream.num_classes, key=key), None

    def query(self, model: PromptedViT, images: ModelImages) -> Query:
        """The query that prompts are looked up by, from frozen weights; none without a pool."""
        return no_query(images) if model.pool is None else model.query(images)

    def loss(
        self, model: PromptedViT, state: Any, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy minus the pull of query and keys towards each other (L2P, eq. 5)."""
        vote = None if self.vote_group is None else Vote(batch.weight, self.vote_group)
        slot = task.index if self.task_mask else None
        output = model(batch.images, batch.query, vote=vote, task=slot)
        entropy = cross_entropy(output.logits, batch, task.competing)
        if output.selection is None:
            return entropy, (output.logits, state)
        similarity = weighted_mean(output.selection.similarity.sum(1), batch.weight)
        return entropy - self.pull * similarity, (output.logits, state)

    def predict(
        self, model: PromptedViT, state: Any, images: ModelImages, query: Query
    ) -> Prediction:
        """Choose prompts by the query alone, for each image by itself."""
        return self.predict_by_vote(model, images, query, None)

    def predict_by_vote(
        self, model: PromptedViT, images: ModelImages, query: Query, vote: Vote | None
    ) -> Prediction:
        """Choose prompts by the query, and let groups of images agree on them.

        Args:
            model: The prompted ViT.
            images: Prepared images.
            query: `self.query(model, images)`.
            vote: The groups; None: each image for itself.
        """
        output = model(images, query, vote=vote)
        selected = None if output.selection is None else output.selection.index
        return Prediction(output.logits, selected)

    def begin_task(
        self, model: PromptedViT, state: Any, task: Task, *, key: Key
    ) -> tuple[PromptedViT, Any]:
        """Start the task's slot of the pool from the slot of the task before, if asked to."""
        if model.pool is None:
            return model, state
        pool = model.pool.transfer(
            task.index, prompts=self.transfer_prompts, keys=self.transfer_keys
        )
        return eqx.tree_at(lambda model: model.pool, model, pool), state

    @abstractmethod
    def trainable(self, model: PromptedViT, task: Task) -> PyTree:
        """Which leaves are trained; see `AbstractMethod.trainable`."""


@for_longer_stream.register(AbstractPoolMethod)
def _with_a_slot_for_each_task(
    method: AbstractPoolMethod, before: int, tasks: int
) -> AbstractPoolMethod:
    """Give a pool that had a slot for each task one for each new task, too."""
    had_slots = method.task_mask and method.pool_size >= before * method.top_k
    size = max(method.pool_size, tasks * method.top_k) if had_slots else method.pool_size
    return replace(method, pool_size=size)
