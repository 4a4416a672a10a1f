"""S-Prompts (Wang et al., NeurIPS 2022, arXiv 2207.12819), in its form for a ViT: S-iPrompts.

Each task (a domain, in the paper) is learned by itself: prompt tokens in front of the sequence and
a head, trained with cross-entropy on a frozen ViT. After it, K-means finds centroids of its
features without prompts, scaled to length 1. An image is given prompt and head of the task that
has the centroid nearest to its feature (section 4.2, K-NN with K = 1).

As in the authors' code, nearest is by the sum of absolute differences, prompts have no position and
the head sees the class token. Unlike there, K-means sees images as they are rather than augmented,
and at most `sample` of a task; the head starts at zero. Each task has room for the head of all
classes, which it fills where every domain has all classes; a class that the chosen task does not
know comes after all that it knows, by the logit of the task that does.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractTaskwise,
    ModelImages,
    Prediction,
    Scores,
    masked_cross_entropy,
    only,
)
from promptax.methods.components.kmeans import k_means
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import Vote, check_prompts, l2_normalize
from promptax.nn.prompted import class_token, require_vit
from promptax.nn.vit import Linear, ViT

# Features have length 1: from here, every centroid of a task that was learned is nearer.
_FAR = 100.0
# More than logits differ by.
_BELOW = 1e4


class Experts(eqx.Module):
    """A ViT with prompts, a head and centroids of each task; all but `backbone` by task."""

    backbone: ViT
    prompt: Float32[Array, "tasks length dim"]
    head: Linear
    known: Float32[Array, "tasks classes"]
    """1 for the classes that a task has."""
    centroid: Float32[Array, "tasks clusters dim"]
    random: PRNGKeyArray
    """What K-means draws its seeds with."""

    def choose(self, query: Float[Array, "batch dim"]) -> Int32[Array, " batch"]:
        """The task with the centroid nearest to the feature of an image without prompts."""
        feature = l2_normalize(query)[:, None, None]
        return jnp.abs(feature - self.centroid).sum(-1).min(-1).argmin(-1).astype(jnp.int32)

    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        chosen: Int32[Array, " batch"],
    ) -> Float32[Array, "batch classes"]:
        """Logits over all classes, of images and the tasks chosen for them."""
        feature = class_token(self.backbone, images, tokens=self.prompt[chosen])
        logits = jnp.einsum("bd,tdc->btc", feature, self.head.kernel) + self.head.bias
        own = jnp.take_along_axis(logits, chosen[:, None, None], axis=1)[:, 0]
        return jnp.where(self.known[chosen] > 0, own, (logits * self.known).sum(1) - _BELOW)


class Features(eqx.Module):
    """A sample of the features of the current task."""

    feature: Float32[Array, "sample dim"]
    count: Int32[Array, ""]
    """Those that were offered; the first of them were taken."""


class SPrompts(AbstractTaskwise):
    """S-Prompts: a prompt and a head of each task, chosen by the nearest centroid of features."""

    length: int = 10
    """Tokens of a prompt."""
    clusters: int = 5
    """Centroids of each task (K)."""
    tasks: int = 10
    """Tasks that there is room for."""
    sample: int = 10_000
    """Features of a task that K-means sees at most."""

    observes: ClassVar[bool] = True

    def __check_init__(self):
        check_prompts(self.tasks, self.length, (0,))
        for name, value in (("clusters", self.clusters), ("sample", self.sample)):
            if not 1 <= value <= 10**6:
                raise UserError(f"{name} is {value}; expected at least 1 and at most 1000000.")

    def init(self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray) -> Experts:
        """Zero heads, and prompts uniform within 1 / sqrt(dim), as in the authors' code."""
        vit, tasks = require_vit(backbone), self.tasks
        key, limit = jr.split(key), 1 / math.sqrt(vit.dim)
        prompt = jr.uniform(key[0], (tasks, self.length, vit.dim), minval=-limit, maxval=limit)
        stack = lambda leaf: jnp.zeros((tasks, *leaf.shape))
        head = jax.tree.map(stack, Linear(vit.dim, num_classes))
        known = jnp.zeros((tasks, num_classes))
        centroid = jnp.full((tasks, self.clusters, vit.dim), _FAR, jnp.float32)
        return Experts(vit, prompt, head, known, centroid, key[1])

    def trainable(self, model: Experts) -> PyTree:
        """Prompts and heads; and what is written at the borders of tasks only."""
        return only(model, lambda model: (model.prompt, model.head, model.known, model.centroid))

    def share(self, params: Experts, task: Task) -> PyTree:
        """The task's own prompt and head."""
        own, none = self.own(task), jax.tree.map(lambda _: False, params)
        parts = lambda model: (model.prompt, model.head.kernel, model.head.bias)
        return eqx.tree_at(parts, none, (own[:, None, None], own[:, None, None], own[:, None]))

    def memory(self, model: Experts, stream: TaskStream) -> Features:
        """Room for the features of the largest task, or for the sample."""
        size = min(self.sample, max(len(stage.index) for stage in stream.stages))
        return Features(jnp.zeros((size, model.backbone.dim)), jnp.zeros((), jnp.int32))

    def begin_task(self, model: Experts, memory: Features, task: Task) -> tuple[Experts, Features]:
        """Say which classes the task has."""
        known = model.known.at[task.index].set(task.classes.astype(jnp.float32))
        return eqx.tree_at(lambda model: model.known, model, known), memory

    def query(self, model: Experts, images: ModelImages) -> Float32[Array, "batch query"]:
        """The feature without prompts."""
        return model.backbone(images).astype(jnp.float32)

    def loss(
        self, model: Experts, images: ModelImages, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy with the task's own prompt and head."""
        logits = model(images, jnp.full(len(images), task.index))
        return masked_cross_entropy(logits, batch, self.competing(task)), logits

    def observe(
        self,
        model: Experts,
        memory: Features,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Features:
        """Take the features of a batch while there is room: batches come in a random order."""
        place = memory.count + jnp.arange(len(images))
        # What has no weight is padding behind the last image.
        place = jnp.where(batch.weight > 0, place, len(memory.feature))
        feature = l2_normalize(self.query(model, images))
        feature = memory.feature.at[place].set(feature, mode="drop")
        return Features(feature, memory.count + (batch.weight > 0).sum(dtype=jnp.int32))

    def end_task(self, model: Experts, memory: Features, task: Task) -> tuple[Experts, Features]:
        """Find the task's centroids, and forget its features."""
        key, taken = jr.fold_in(model.random, task.index), jnp.arange(len(memory.feature))
        found = k_means(memory.feature, taken < memory.count, self.clusters, key=key)
        centroid = model.centroid.at[task.index].set(found)
        model = eqx.tree_at(lambda model: model.centroid, model, centroid)
        return model, jax.tree.map(jnp.zeros_like, memory)

    def predict(
        self,
        model: Experts,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """With prompt and head of the task that has the nearest centroid."""
        chosen = model.choose(query)
        return Prediction(model(images, chosen), chosen[:, None])
