"""HiDe-Prompt (Wang et al., NeurIPS 2023, arXiv 2310.07234).

What a learner has to know of an image is taken apart (section 4): the class within a task, the
task, and the class among those of all tasks.

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
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST, SMALLEST, Alignment
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractTaskwise,
    ModelImages,
    Prediction,
    Scores,
    masked_cross_entropy,
    only,
    weighted_mean,
)
from promptax.methods.components.alignment import align
from promptax.methods.components.gaussians import Draws, Gaussians
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import Vote, check_prompts
from promptax.nn.prompted import check_blocks, class_token, require_vit
from promptax.nn.vit import Linear, ViT


class HierarchicalViT(eqx.Module):
    """A ViT with a prefix for each task, a head, and another one that tells the task."""

    backbone: ViT
    prompt: Float32[Array, "tasks layers 2 length heads head_dim"]
    head: Linear
    identity: Linear
    """Scores of pairs of a task and a class, task by task, from features without prompts."""
    known: Float32[Array, "tasks classes"]
    """1 for the pairs that there are."""
    random: PRNGKeyArray
    """What features are drawn with."""
    layers: tuple[int, ...] = eqx.field(static=True)

    def choose(self, query: Float[Array, "batch dim"]) -> Int32[Array, " batch"]:
        """The task of an image, by its feature without prompts."""
        scores = jnp.where(self.known.reshape(-1) > 0, self.identity(query), -jnp.inf)
        return (scores.argmax(1) // self.known.shape[1]).astype(jnp.int32)

    def features(
        self,
        images: Float[Array, "batch height width channel"],
        prompt: Float[Array, "batch layers 2 length heads head_dim"],
    ) -> Float32[Array, "batch dim"]:
        """What the head sees, with a prefix for each image."""
        prefixes = dict(zip(self.layers, jnp.moveaxis(prompt, 1, 0), strict=True))
        return class_token(self.backbone, images, prefixes=prefixes)


class Memory(eqx.Module):
    """Gaussians of the features of each class of each task, one task behind another."""

    plain: Gaussians
    """Of features without prompts."""
    prompted: Gaussians
    """Of features with the prompt of their task."""
    pair: Int32[Array, " slots"]
    """Which task and class it is: the number of the score in `HierarchicalViT.identity`."""
    used: Int32[Array, ""]
    """Those of earlier tasks."""

    def slot(self, task: Task) -> Int32[Array, " classes"]:
        """Where each class of the current task is; behind the end for others."""
        place = self.used + jnp.cumsum(task.classes, dtype=jnp.int32) - 1
        return jnp.where(task.classes, place, len(self.pair))


class HiDePrompt(AbstractTaskwise):
    """HiDe-Prompt: a prefix of each task, a head that tells the task, and aligned heads."""

    length: int = 5
    """Length of a prefix."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with a prefix."""
    tasks: int = 10
    """Tasks that there is room for."""
    ensemble: float = 0.01
    """Share of earlier tasks' prefixes in that of a task (alpha)."""
    contrast: float = 0.1
    """Weight of the contrastive term (lambda)."""
    temperature: float = 0.8
    """Temperature of the contrastive term (tau)."""
    head_rate: float = 0.1
    """Learning rate of the head, as a fraction of that of the prefixes."""
    diagonal: bool = False
    """Keep variances alone rather than covariances: far less memory."""
    alignment: Alignment = Alignment(30, 120, 120, 0.005)
    """How the heads are trained on features that are drawn."""

    observes: ClassVar[bool] = True

    def __check_init__(self):
        check_prompts(self.tasks, self.length, self.layers)
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
        self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray
    ) -> HierarchicalViT:
        """Zero heads, and prefixes uniform in [-1, 1), as in the authors' code."""
        vit = require_vit(backbone)
        check_blocks(vit, self.layers)
        heads, keys = vit.config.heads, jr.split(key)
        shape = (self.tasks, len(self.layers), 2, self.length, heads, vit.dim // heads)
        return HierarchicalViT(
            vit,
            # Drawn flat, for the same values: XLA takes seconds to compile a draw of six axes.
            jr.uniform(keys[0], (math.prod(shape),), minval=-1.0).reshape(shape),
            Linear(vit.dim, num_classes),
            Linear(vit.dim, self.tasks * num_classes),
            jnp.zeros((self.tasks, num_classes)),
            keys[1],
            self.layers,
        )

    def trainable(self, model: HierarchicalViT) -> PyTree:
        """Prefixes and head; and what is written at the borders of tasks only."""
        return only(model, lambda m: (m.prompt, m.head, m.identity, m.known))

    def share(self, params: HierarchicalViT, task: Task) -> PyTree:
        """The task's own prefix, and the head."""
        none, own = jax.tree.map(lambda _: False, params), self.own(task)
        parts = lambda m: (m.prompt, m.head.kernel, m.head.bias)
        return eqx.tree_at(parts, none, (own[:, None, None, None, None, None], True, True))

    def rates(self, model: HierarchicalViT) -> PyTree[float]:
        """A fraction for the head."""
        whole = jax.tree.map(lambda _: 1.0, model)
        return eqx.tree_at(lambda m: m.head, whole, self.head_rate)

    def memory(self, model: HierarchicalViT, stream: TaskStream) -> Memory:
        """No feature yet; room for the classes of all tasks."""
        slots = sum(len(stage.classes) for stage in stream.stages)
        empty = lambda: Gaussians.empty(slots, model.backbone.dim, diagonal=self.diagonal)
        pair = jnp.zeros(slots, jnp.int32)
        return Memory(empty(), empty(), pair, jnp.zeros((), jnp.int32))

    def begin_task(
        self, model: HierarchicalViT, memory: Memory, task: Task
    ) -> tuple[HierarchicalViT, Memory]:
        """Start the task's prefix from that of the task before."""
        before = model.prompt[jnp.maximum(task.index - 1, 0)]
        prompt = model.prompt.at[task.index].set(before)
        return eqx.tree_at(lambda m: m.prompt, model, prompt), memory

    def prompt(self, model: HierarchicalViT, task: Task) -> Float[Array, "layers 2 length heads d"]:
        """The prefix of the current task, with its share of earlier ones (p_t)."""
        earlier = jnp.arange(self.tasks) < task.index
        mean = jnp.einsum("t,t...->...", earlier / jnp.maximum(task.index, 1), model.prompt)
        alpha = jnp.where(task.index > 0, self.ensemble, 0.0)
        return (1 - alpha) * model.prompt[task.index] + alpha * mean

    def features(
        self, model: HierarchicalViT, images: ModelImages, task: Task
    ) -> Float32[Array, "batch dim"]:
        """With the prefix of the current task."""
        prompt = self.prompt(model, task)
        return model.features(images, jnp.broadcast_to(prompt, (len(images), *prompt.shape)))

    def objective(
        self,
        model: HierarchicalViT,
        memory: Memory,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy and the contrastive term."""
        features = self.features(model, images, task)
        logits = model.head(features)
        rows = jnp.concatenate([memory.prompted.mean, features])
        weight = jnp.concatenate([memory.prompted.seen.astype(jnp.float32), batch.weight])
        loss = masked_cross_entropy(logits, batch, self.competing(task))
        return loss + self.contrast * contrastive(rows, weight, self.temperature), logits

    def loss(
        self,
        model: HierarchicalViT,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy alone."""
        logits = model.head(self.features(model, images, task))
        return masked_cross_entropy(logits, batch, self.competing(task)), logits

    def query(self, model: HierarchicalViT, images: ModelImages) -> Float32[Array, "batch query"]:
        """The feature without prompts."""
        return model.backbone(images).astype(jnp.float32)

    def observe(
        self,
        model: HierarchicalViT,
        memory: Memory,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Add the features of a batch, without prompts and with the task's."""
        slot = memory.slot(task)[batch.label]
        plain = memory.plain.add(self.query(model, images), slot, batch.weight)
        prompted = memory.prompted.add(self.features(model, images, task), slot, batch.weight)
        return Memory(plain, prompted, memory.pair, memory.used)

    def end_task(
        self, model: HierarchicalViT, memory: Memory, task: Task
    ) -> tuple[HierarchicalViT, Memory]:
        """Keep the prefix as it was used, and align both heads."""
        pair = task.index * len(task.classes) + jnp.arange(len(task.classes), dtype=jnp.int32)
        pair = memory.pair.at[memory.slot(task)].set(pair, mode="drop")
        used = memory.used + task.classes.sum(dtype=jnp.int32)
        memory = Memory(memory.plain, memory.prompted, pair, used)
        prompt = model.prompt.at[task.index].set(self.prompt(model, task))
        known = model.known.at[task.index].set(task.classes.astype(jnp.float32))
        model = eqx.tree_at(lambda m: (m.prompt, m.known), model, (prompt, known))
        aligned = lambda: self._aligned(model, memory, task)
        heads = jax.lax.cond(task.index > 0, aligned, lambda: (model.head, model.identity))
        return eqx.tree_at(lambda m: (m.head, m.identity), model, heads), memory

    def _aligned(self, model: HierarchicalViT, memory: Memory, task: Task):
        sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.trace(0.9))
        keys, pair = jr.split(jr.fold_in(model.random, task.index)), memory.pair

        def retrain(head: Linear, gaussians: Gaussians, label: Array, seen: Array, key) -> Linear:
            def loss(logits: Scores, draws: Draws) -> Float[Array, ""]:
                logits, wanted = jnp.where(seen, logits, -jnp.inf), label[draws.label]
                entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
                return weighted_mean(entropy, draws.weight)

            return align(head, gaussians.factors(), self.alignment, sgd, loss, key=key)

        label, known = pair % len(task.seen), model.known.reshape(-1) > 0
        head = retrain(model.head, memory.prompted, label, task.seen, keys[0])
        # From zero: what went on from before would favour the tasks that it was trained on longer.
        identity = jax.tree.map(jnp.zeros_like, model.identity)
        return head, retrain(identity, memory.plain, pair, known, keys[1])

    def predict(
        self,
        model: HierarchicalViT,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """With the prefix of the task that the second head tells."""
        chosen = model.choose(query)
        logits = model.head(model.features(images, model.prompt[chosen]))
        return Prediction(logits, chosen[:, None])


def contrastive(
    rows: Float[Array, "rows dim"], weight: Float[Array, " rows"], temperature: float
) -> Float[Array, ""]:
    """Mean cross-entropy with which each row of weight 1 is found among them by its products."""
    # A row of weight 0 is not counted, but keeps itself, so as to stay finite.
    competes = (weight > 0) | jnp.eye(len(rows), dtype=bool)
    similarity = jnp.where(competes, rows @ rows.T / temperature, -jnp.inf)
    return weighted_mean(-jnp.diag(jax.nn.log_softmax(similarity)), weight)
