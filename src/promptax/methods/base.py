"""What a method is: one file each in `promptax.methods`, over one loop that serves your own too."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST, Replay
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.components.buffer import Buffer, extend
from promptax.nn.backbone import AbstractBackbone, Statistics
from promptax.nn.classifier import Classifier
from promptax.nn.prompt import Vote
from promptax.nn.prompted import Output, PromptedViT

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
    steps: ClassVar[bool] = True
    """Whether tasks are learned by optimizer steps; a closed form only observes."""
    observes: ClassVar[bool] = False
    """Whether `observe` is given the images of each task once more, after its steps."""

    @property
    def reviews(self) -> int:
        """Passes over what memory keeps of images, after the steps of each task."""
        return 0

    def stream(self, stream: TaskStream) -> TaskStream:
        """The stream as the method trains on it; unchanged, unless it may see tasks jointly.

        Raises `UserError` for a stream that the method cannot be trained on.
        """
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

    def objective(
        self,
        model: Any,
        memory: Any,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """What a step minimises, and the logits: the loss, and what memory adds to it. To be
        overridden where both need the same of the images."""
        loss, logits = self.loss(model, images, batch, task, key=key)
        return loss + self.penalty(model, memory, images, batch, task, logits), logits

    def rates(self, model: Any) -> PyTree[float]:
        """Factors of the learning rate: one for all, or a tree whose leaves stand for parts."""
        return 1.0

    def query(self, model: Any, images: ModelImages) -> Float32[Array, "batch query"]:
        """What `predict` needs of an image and no training changes: computed once a run."""
        return jnp.zeros((len(images), 0))

    def query_of(
        self, model: Any, images: ModelImages, batch: Batch
    ) -> Float32[Array, "batch query"]:
        """The query in training: what came with the batch, and of what it did not come with."""
        if batch.query is None:
            return self.query(model, images)
        known = len(batch.query)
        if known == len(images):
            return batch.query
        return jnp.concatenate([batch.query, self.query(model, images[known:])])

    def competing(self, task: Task) -> Bool[Array, " classes"]:
        """The classes whose logits compete in training."""
        return task.classes

    def share(self, params: Any, task: Task) -> PyTree | None:
        """Which entries of the trainable leaves a task trains, where that is not all of them: a
        tree like `params` of booleans that broadcast to its leaves.

        The others have no part in the clip norm and keep their bits, whatever the optimizer.
        """
        return None

    def memory(self, model: Any, stream: TaskStream) -> PyTree:
        """What the method remembers besides its model, of its final size: nothing, if None.

        It is in the checkpoints, but not in a `Learner`: what `predict` needs, `end_task` has to
        write into the model. Raises `UserError` for a size that does not fit the stream.
        """
        return None

    def begin_task(self, model: Any, memory: Any, task: Task) -> tuple[PyTree, PyTree]:
        """Model and memory as they enter a task; only trainable leaves of the model may change."""
        return model, memory

    def end_task(self, model: Any, memory: Any, task: Task) -> tuple[PyTree, PyTree]:
        """Model and memory as they leave a task; only trainable leaves of the model may change."""
        return model, memory

    def recall(self, memory: Any, batch: Batch, task: Task, *, key: PRNGKeyArray) -> Batch:
        """What a step trains on: the batch, and behind it examples from memory."""
        return batch

    def penalty(
        self,
        model: Any,
        memory: Any,
        images: ModelImages,
        batch: Batch,
        task: Task,
        logits: Scores,
    ) -> Float[Array, ""] | float:
        """What memory adds to the loss of a batch with these `logits`."""
        return 0.0

    def remember(
        self, memory: Any, batch: Batch, logits: Scores, task: Task, *, key: PRNGKeyArray
    ) -> PyTree:
        """Memory after a step. `batch` is as it came, unmixed and without what was recalled;
        examples that were in a batch of the task before have weight 0."""
        return memory

    def observe(
        self,
        model: Any,
        memory: Any,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> PyTree:
        """Memory after a batch of the pass at the end of a task, where `observes` is true.

        `images` are prepared as for evaluation, and each example of the task comes once.
        """
        return memory


class AbstractRehearsal(AbstractMethod):
    """What methods share that can replay: a buffer, if they were given one, fed by every step.

    Examples from it stand behind those of the batch, as many in each step.
    """

    replay: eqx.AbstractVar[Replay]

    @property
    def reviews(self) -> int:
        """As the settings say."""
        return self.replay.review_epochs

    def memory(self, model: Any, stream: TaskStream) -> Buffer | None:
        """The empty buffer."""
        return Buffer.empty(self.replay, stream) if self.replay.buffer_size else None

    def recall(
        self, memory: Buffer | None, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> Batch:
        """The batch and a sample of the buffer."""
        if memory is None:
            return batch
        return extend(batch, memory.sample(self.replay.replay_batch, key=key))

    def remember(
        self,
        memory: Buffer | None,
        batch: Batch,
        logits: Scores,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Buffer | None:
        """The buffer, after it was offered the batch."""
        return None if memory is None else memory.add(batch, logits, key=key)

    def competing(self, task: Task) -> Bool[Array, " classes"]:
        """Where old classes are replayed, all that were seen."""
        return task.seen if self.replay.buffer_size else task.classes


class AbstractPromptMethod(AbstractRehearsal):
    """What methods over a `PromptedViT` with a pool share; their fields say what differs."""

    votes: ClassVar[bool] = True

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

    def loss(
        self,
        model: PromptedViT,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy among competing classes minus the pull of query and keys (L2P, eq. 5)."""
        output = self.forward(model, images, batch, task)
        assert output.selection is not None, "a prompt method's model has a pool"
        loss = masked_cross_entropy(output.logits, batch, self.competing(task))
        similarity = weighted_mean(output.selection.similarity.sum(1), batch.weight)
        return loss - self.pull * similarity, output.logits

    def forward(self, model: PromptedViT, images: ModelImages, batch: Batch, task: Task) -> Output:
        """The training pass: prompts by vote, and by task where `task_mask` says so."""
        vote = None if self.vote_group is None else Vote(batch.weight, self.vote_group)
        slot = task.index if self.task_mask else None
        return model(images, self.query_of(model, images, batch), vote=vote, task=slot)

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

    def begin_task(self, model: PromptedViT, memory: Any, task: Task) -> tuple[PromptedViT, PyTree]:
        """Start the task's slot of the pool from the slot of the task before."""
        assert model.pool is not None, "a prompt method's model has a pool"
        pool = model.pool.transfer(
            task.index, prompts=self.transfer_prompts, keys=self.transfer_keys
        )
        return eqx.tree_at(lambda model: model.pool, model, pool), memory


class AbstractTaskwise(AbstractMethod):
    """What methods share that set parameters aside for each of so many tasks."""

    tasks: eqx.AbstractVar[int]

    def stream(self, stream: TaskStream) -> TaskStream:
        """The stream, unchanged. Raises `UserError` if it has more tasks than there is room for."""
        if len(stream.stages) > self.tasks:
            raise UserError(
                f"{stream.name} has {len(stream.stages)} tasks, but the method has parameters for "
                f"{self.tasks}: set --tasks to {len(stream.stages)} or more."
            )
        return stream

    def own(self, task: Task) -> Bool[Array, " tasks"]:
        """Where the task's parameters are, among those of all tasks."""
        return jnp.arange(self.tasks) == task.index


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
        """Cross-entropy over the competing classes."""
        logits = self.predict(model, images, self.query_of(model, images, batch)).logits
        return masked_cross_entropy(logits, batch, self.competing(task)), logits

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


class AbstractFinetuned(AbstractClassifier):
    """What methods share that train the backbone with the head, as slowly as they like."""

    backbone_rate: eqx.AbstractVar[float]

    def __check_init__(self):
        if not 0 <= self.backbone_rate <= 1:
            raise UserError(f"backbone rate is {self.backbone_rate}; expected between 0 and 1.")

    def rates(self, model: Classifier) -> PyTree[float]:
        """A fraction for the backbone."""
        parts = lambda model: (model.backbone, model.head)
        return eqx.tree_at(parts, model, (self.backbone_rate, 1.0))


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
