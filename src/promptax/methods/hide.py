"""HiDe-Prompt (Wang et al., NeurIPS 2023, arXiv 2310.07234).

Class-incremental prediction is decomposed into three problems (section 4): the class within a
task, the identity of the task, and the class among those of all tasks.

- Within a task: a prefix e_t of its own, which starts from that of the task before and is used as
  p_t = (1 - alpha) e_t + alpha mean of p_1 .. p_(t-1). Its loss is cross-entropy among the task's
  classes plus lambda times a contrastive term, which keeps features apart from one another and from
  the mean features mu of earlier classes.
- Task identity: a second head on features without prompts.
- All tasks: after each task, both heads are trained on features drawn from a Gaussian for each
  class, of features with the task's prompt for the first and without prompts for the second.

As in the authors' code, where the paper differs: with M the rows of all mu and of the batch, the
contrastive term is the mean cross-entropy of softmax(M M^T / tau) and the unit matrix, from the
first task on; the second head tells classes, and the task follows from the class; the first task is
not aligned; the head has a tenth of the prompts' learning rate. Unlike there, the second head is
linear and trained from zero after each task, on what is drawn alone; and a Gaussian is that of a
class in a task, so that classes may come again. Keys and values of a prefix are kept apart, which
the authors' code mixes.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST, SMALLEST
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
    only,
    union,
)
from promptax.methods.components.alignment import Alignment
from promptax.methods.components.gaussians import Draws, Gaussians
from promptax.methods.components.losses import contrastive, cross_entropy, weighted_mean
from promptax.methods.components.task_rows import own_row, train_rows
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import check_prompts
from promptax.nn.prompted import check_blocks, class_token, require_vit
from promptax.nn.vit import Linear, ViT


class TaskPrefixes(eqx.Module):
    """A frozen ViT with a prefix for each task and one head for all classes."""

    backbone: ViT
    prompt: Float32[Array, "tasks layers 2 length heads head_dim"]
    head: Linear
    layers: tuple[int, ...] = eqx.field(static=True)

    def features(
        self,
        images: Float[Array, "batch height width channel"],
        prompt: Float[Array, "batch layers 2 length heads head_dim"],
    ) -> Float32[Array, "batch dim"]:
        """The input of the head, with a prefix for each image."""
        prefixes = dict(zip(self.layers, jnp.moveaxis(prompt, 1, 0), strict=True))
        return class_token(self.backbone, images, prefixes=prefixes)


class TaskIdentity(eqx.Module):
    """The state of HiDe-Prompt: feature statistics, and the head that recognises tasks.

    A pair is a class of a task. Pair number `task * classes + class` has its score in `identity`,
    and its Gaussians in a slot of its own; slots are filled in the order in which pairs come.
    """

    identity: Linear
    """Scores of pairs, from features without prompts."""
    known: Bool[Array, "tasks classes"]
    """The pairs that have been learned."""
    plain: Gaussians
    """By slot, of features without prompts."""
    prompted: Gaussians
    """By slot, of features with the prompt of their task."""
    pair: Int32[Array, " slots"]
    """The pair of each slot."""
    used: Int32[Array, ""]
    """Number of slots of earlier tasks."""

    def slot(self, task: Task) -> Int32[Array, " classes"]:
        """The slot of each class of the current task; behind the last one for other classes."""
        position = self.used + jnp.cumsum(task.classes, dtype=jnp.int32) - 1
        return jnp.where(task.classes, position, len(self.pair))

    def recognise(self, query: Float[Array, "batch dim"]) -> Int32[Array, " batch"]:
        """The task of each image, by its feature without prompts."""
        scores = jnp.where(self.known.reshape(-1), self.identity(query), -jnp.inf)
        return (scores.argmax(1) // self.known.shape[1]).astype(jnp.int32)


class HiDePrompt(AbstractMethod):
    """HiDe-Prompt: a prefix for each task, a head that recognises tasks, and aligned heads."""

    length: int = 5
    """Length of a prefix."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with a prefix."""
    ensemble: float = 0.01
    """Share of the mean of earlier prefixes in that of a task (alpha)."""
    contrast: float = 0.1
    """Weight of the contrastive term (lambda)."""
    temperature: float = 0.8
    """Temperature of the contrastive term (tau)."""
    head_rate: float = 0.1
    """Learning rate of the head, as a fraction of that of the prefixes."""
    diagonal: bool = False
    """Keep variances rather than covariances: far less memory."""
    alignment: Alignment = Alignment(
        align_epochs=30, align_samples=120, align_batch=120, align_rate=0.005
    )
    """How the heads are trained on drawn features."""

    def __check_init__(self):
        check_prompts(1, self.length, self.layers)
        for name, value in (("ensemble", self.ensemble), ("head rate", self.head_rate)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; expected between 0 and 1.")
        if not 0 <= self.contrast <= LARGEST:
            raise UserError(f"contrast is {self.contrast}; expected from 0 to {LARGEST:g}.")
        if not SMALLEST <= self.temperature <= LARGEST:
            raise UserError(
                f"temperature is {self.temperature}; expected from {SMALLEST:g} to {LARGEST:g}."
            )

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[TaskPrefixes, TaskIdentity]:
        """Make zero heads, and prefixes uniform in [-1, 1), as in the authors' code."""
        vit = require_vit(backbone)
        check_blocks(vit, self.layers)
        tasks = len(stream.tasks)
        classes = stream.num_classes
        check_prompts(tasks, self.length, self.layers)
        heads = vit.config.heads
        shape = (tasks, len(self.layers), 2, self.length, heads, vit.dim // heads)
        # Drawn flat, for the same values: XLA takes seconds to compile a draw of six axes.
        prompt = jr.uniform(key, (math.prod(shape),), minval=-1.0).reshape(shape)
        model = TaskPrefixes(vit, prompt, Linear(vit.dim, classes), self.layers)
        slots = sum(len(task.classes) for task in stream.tasks)
        state = TaskIdentity(
            identity=Linear(vit.dim, tasks * classes),
            known=jnp.zeros((tasks, classes), bool),
            plain=Gaussians.empty(slots, vit.dim, diagonal=self.diagonal),
            prompted=Gaussians.empty(slots, vit.dim, diagonal=self.diagonal),
            pair=jnp.zeros(slots, jnp.int32),
            used=jnp.zeros((), jnp.int32),
        )
        return model, state

    def trainable(self, model: TaskPrefixes, task: Task) -> PyTree:
        """The task's own prefix, and the head at its own rate."""
        own = train_rows(own_row(len(model.prompt), task))
        head = only(model, lambda model: model.head, self.head_rate)
        return union(only(model, lambda model: model.prompt, own), head)

    def begin_task(
        self, model: TaskPrefixes, state: TaskIdentity, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, TaskIdentity]:
        """Start the task's prefix from that of the task before."""
        before = model.prompt[jnp.maximum(task.index - 1, 0)]
        prompt = model.prompt.at[task.index].set(before)
        return eqx.tree_at(lambda model: model.prompt, model, prompt), state

    def prefix(
        self, model: TaskPrefixes, task: Task
    ) -> Float[Array, "layers 2 length heads head_dim"]:
        """The prefix of the current task, with its share of earlier ones (p_t)."""
        earlier = jnp.arange(len(model.prompt)) < task.index
        mean = jnp.einsum("t,t...->...", earlier / jnp.maximum(task.index, 1), model.prompt)
        alpha = jnp.where(task.index > 0, self.ensemble, 0.0)
        return (1 - alpha) * model.prompt[task.index] + alpha * mean

    def features(
        self, model: TaskPrefixes, images: ModelImages, task: Task
    ) -> Float32[Array, "batch dim"]:
        """Features with the prefix of the current task."""
        prefix = self.prefix(model, task)
        return model.features(images, jnp.broadcast_to(prefix, (len(images), *prefix.shape)))

    def query(self, model: TaskPrefixes, images: ModelImages) -> Query:
        """The feature of each image without prompts."""
        return model.backbone(images).astype(jnp.float32)

    def loss(
        self, model: TaskPrefixes, state: TaskIdentity, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy and the contrastive term."""
        features = self.features(model, batch.images, task)
        logits = model.head(features)
        rows = jnp.concatenate([state.prompted.mean, features])
        weight = jnp.concatenate([state.prompted.seen.astype(jnp.float32), batch.weight])
        contrast = contrastive(rows, weight, self.temperature)
        loss = cross_entropy(logits, batch, task.competing) + self.contrast * contrast
        return loss, (logits, state)

    def observe(
        self, model: TaskPrefixes, state: TaskIdentity, batch: Batch, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, TaskIdentity]:
        """Add the features of a batch, without prompts and with the task's prefix."""
        slot = state.slot(task)[batch.label]
        plain = state.plain.add(batch.query, slot, batch.weight)
        features = self.features(model, batch.images, task)
        prompted = state.prompted.add(features, slot, batch.weight)
        where = lambda state: (state.plain, state.prompted)
        return model, eqx.tree_at(where, state, (plain, prompted))

    def end_task(
        self, model: TaskPrefixes, state: TaskIdentity, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, TaskIdentity]:
        """Keep the prefix as it was used, and align both heads from the second task on."""
        prompt = model.prompt.at[task.index].set(self.prefix(model, task))
        classes = len(task.classes)
        pair = task.index * classes + jnp.arange(classes, dtype=jnp.int32)
        state = TaskIdentity(
            identity=state.identity,
            known=state.known.at[task.index].set(task.classes),
            plain=state.plain,
            prompted=state.prompted,
            pair=state.pair.at[state.slot(task)].set(pair, mode="drop"),
            used=state.used + task.classes.sum(dtype=jnp.int32),
        )
        aligned = lambda: self._aligned_heads(model.head, state, task, key)
        unchanged = lambda: (model.head, state.identity)
        head, identity = jax.lax.cond(task.index > 0, aligned, unchanged)
        model = eqx.tree_at(lambda model: (model.prompt, model.head), model, (prompt, head))
        return model, eqx.tree_at(lambda state: state.identity, state, identity)

    def _aligned_heads(
        self, head: Linear, state: TaskIdentity, task: Task, key: Key
    ) -> tuple[Linear, Linear]:
        """The head of all classes, and the one that recognises tasks."""
        optimizer = optax.chain(
            optax.add_decayed_weights(weight_decay=5e-4), optax.trace(decay=0.9)
        )
        head_key, identity_key = jr.split(key)

        def retrain(
            head: Linear,
            gaussians: Gaussians,
            label: Int32[Array, " slots"],
            competing: Bool[Array, " outputs"],
            key: Key,
        ) -> Linear:
            """Align a head on the Gaussians of all slots, with an output for each slot's label."""

            def loss(logits: Float32[Array, "batch outputs"], draws: Draws) -> Float[Array, ""]:
                masked = jnp.where(competing, logits, -jnp.inf)
                target = label[draws.label]
                entropy = optax.softmax_cross_entropy_with_integer_labels(masked, target)
                return weighted_mean(entropy, draws.weight)

            return self.alignment(head, gaussians.factors(), optimizer, loss, key=key)

        class_of_slot = state.pair % len(task.seen)
        head = retrain(head, state.prompted, class_of_slot, task.seen, head_key)
        # From zero: a head that went on from before would favour the tasks of longer training.
        start = jax.tree.map(jnp.zeros_like, state.identity)
        known = state.known.reshape(-1)
        return head, retrain(start, state.plain, state.pair, known, identity_key)

    def predict(
        self, model: TaskPrefixes, state: TaskIdentity, images: ModelImages, query: Query
    ) -> Prediction:
        """Use the prefix of the task that is recognised from the feature without prompts."""
        chosen = state.recognise(query)
        logits = model.head(model.features(images, model.prompt[chosen]))
        return Prediction(logits, chosen[:, None])
