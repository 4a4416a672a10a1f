"""What a method is: one file each in `promptax.methods`, over one loop that serves your own too."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.data.stream import TaskStream
from promptax.errors import UserError
from promptax.nn.backbone import AbstractBackbone, Statistics
from promptax.nn.classifier import Classifier
from promptax.nn.prompt import Vote
from promptax.nn.prompted import Output, PromptedViT
from promptax.types import Batch, Task

ModelImages = Float32[Array, "batch size size 3"]
Scores = Float32[Array, "batch classes"]


class Prediction(eqx.Module):
    """What a method says of a batch of images."""

    logits: Scores
    """Over all classes of the stream, unmasked."""
    selected: Int32[Array, "batch top_k"]
    """The prompts that each image was given; `top_k` is 0 for a method without a pool."""


class AbstractMethod(eqx.Module):
    """A continual learner: its fields are its hyperparameters, and so its command-line flags.

    The model that it trains is any PyTree of its own making. Methods are values: equal
    hyperparameters share one compiled step.
    """

    votes: ClassVar[bool] = False
    """Whether `predict` can take a batch vote."""

    def stream(self, stream: TaskStream) -> TaskStream:
        """The stream as the method trains on it; unchanged, unless it may see tasks jointly."""
        return stream

    @abstractmethod
    def init(self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray) -> PyTree:
        """The model before the first task, of its final size.

        Raises `UserError` where the hyperparameters do not fit the backbone.
        """

    @abstractmethod
    def trainable(self, model: Any) -> PyTree:
        """A filter (see `only`) for the leaves that gradient and optimizer state exist for."""

    @abstractmethod
    def loss(
        self, model: Any, images: ModelImages, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Scores]:
        """The training loss and the logits, for augmented `images` of `batch`."""

    @abstractmethod
    def predict(
        self,
        model: Any,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """Logits for images, each by itself unless a vote is given; no task is known."""

    def query(self, model: Any, images: ModelImages) -> Float32[Array, "batch query"]:
        """What `predict` needs of an image and no training changes: computed once a run."""
        return jnp.zeros((len(images), 0))

    def begin_task(self, model: Any, task: Task) -> PyTree:
        """The model as it enters a task; only trainable leaves may change."""
        return model

    def end_task(self, model: Any, task: Task) -> PyTree:
        """The model as it leaves a task; only trainable leaves may change."""
        return model


class AbstractPromptMethod(AbstractMethod):
    """What methods over a `PromptedViT` with a pool share; their fields say what differs."""

    votes: ClassVar[bool] = True

    pull: eqx.AbstractVar[float]
    vote_group: eqx.AbstractVar[int | None]
    task_mask: eqx.AbstractVar[bool]
    transfer_prompts: eqx.AbstractVar[bool]
    transfer_keys: eqx.AbstractVar[bool]

    def __check_init__(self):
        if not math.isfinite(self.pull):
            raise UserError(f"pull is {self.pull}; expected a finite number.")
        if self.vote_group is not None and self.vote_group < 1:
            raise UserError(f"vote group is {self.vote_group}; expected at least 1.")

    def loss(
        self,
        model: PromptedViT,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy over the task's classes minus the pull of query and keys (L2P, eq. 5)."""
        output = self.forward(model, images, batch.weight, task)
        assert output.selection is not None, "a prompt method's model has a pool"
        loss = masked_cross_entropy(output.logits, batch, task.classes)
        similarity = weighted_mean(output.selection.similarity.sum(1), batch.weight)
        return loss - self.pull * similarity, output.logits

    def forward(
        self, model: PromptedViT, images: ModelImages, weight: Float[Array, " batch"], task: Task
    ) -> Output:
        """The training pass: prompts by vote, and by task where `task_mask` says so."""
        vote = None if self.vote_group is None else Vote(weight, self.vote_group)
        slot = task.index if self.task_mask else None
        return model(images, self.query(model, images), vote=vote, task=slot)

    def predict(
        self,
        model: PromptedViT,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """Prompts by query alone, each image by itself unless a vote is given."""
        output = model(images, query, vote=vote)
        assert output.selection is not None, "a prompt method's model has a pool"
        return Prediction(output.logits, output.selection.index)

    def query(self, model: PromptedViT, images: ModelImages) -> Float32[Array, "batch query"]:
        """The query of the model, from frozen weights."""
        return model.query(images)

    def begin_task(self, model: PromptedViT, task: Task) -> PromptedViT:
        """Start the task's slot of the pool from the slot of the task before."""
        assert model.pool is not None, "a prompt method's model has a pool"
        pool = model.pool.transfer(
            task.index, prompts=self.transfer_prompts, keys=self.transfer_keys
        )
        return eqx.tree_at(lambda model: model.pool, model, pool)


class AbstractClassifier(AbstractMethod):
    """What methods without prompts share: a head on the features of any backbone."""

    train_backbone: eqx.AbstractVar[bool]

    def init(
        self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray
    ) -> Classifier:
        """A zero head on the backbone."""
        return Classifier(backbone, num_classes)

    def trainable(self, model: Classifier) -> PyTree:
        """The head, and the backbone where it is trained."""
        everything = lambda model: (model.head, model.backbone)
        return only(model, everything if self.train_backbone else lambda model: model.head)

    def loss(
        self,
        model: Classifier,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy over the task's classes."""
        logits = self.predict(model, images, self.query(model, images)).logits
        return masked_cross_entropy(logits, batch, task.classes), logits

    def query(self, model: Classifier, images: ModelImages) -> Float32[Array, "batch query"]:
        """The feature itself where the backbone is frozen: an image passes it once in a run."""
        return super().query(model, images) if self.train_backbone else model.features(images)

    def predict(
        self,
        model: Classifier,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """The head on the feature."""
        logits = model(images) if self.train_backbone else model.head(query)
        return Prediction(logits, jnp.zeros((len(images), 0), jnp.int32))


def masked_cross_entropy(
    logits: Scores, batch: Batch, classes: Bool[Array, " classes"]
) -> Float[Array, ""]:
    """Mean cross-entropy in which only `classes` compete: the others get no gradient.

    (L2P, section 5: the logits of other tasks' classes are set to minus infinity.) An example that
    is mixed with another has the labels of both, by their shares.
    """
    masked = jnp.where(classes, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(masked, batch.label)
    if batch.other is not None and batch.share is not None:
        others = optax.softmax_cross_entropy_with_integer_labels(masked, batch.other)
        loss = batch.share * loss + (1 - batch.share) * others
    return weighted_mean(loss, batch.weight)


def weighted_mean(
    values: Float[Array, " batch"], weight: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Mean over the examples of weight 1; 0 where there are none.

    `where` rather than a product, because what a padded example gives may be infinite.
    """
    return jnp.where(weight > 0, values * weight, 0).sum() / jnp.maximum(weight.sum(), 1)


def only(model: PyTree, where: Callable[[Any], Any]) -> PyTree:
    """A filter, as `equinox.partition` takes it, for the floating-point arrays in the parts of
    the model that `where` picks, except `Statistics`, which are data."""
    nowhere = jax.tree.map(lambda _: False, model)
    fixed = lambda node: isinstance(node, Statistics)
    pick = lambda node: False if fixed(node) else eqx.is_inexact_array
    picked = lambda part: jax.tree.map(pick, part, is_leaf=fixed)
    return eqx.tree_at(where, nowhere, replace_fn=picked, is_leaf=lambda leaf: leaf is None)
