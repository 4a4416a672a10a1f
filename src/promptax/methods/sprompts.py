"""S-Prompts (Wang et al., NeurIPS 2022, arXiv 2207.12819), in its form for a ViT: S-iPrompts.

Each task (a domain, in the paper) is learned by itself: prompt tokens in front of the sequence and
a head, trained with cross-entropy on a frozen ViT. After it, K-means finds centroids of its
features without prompts, scaled to length 1. An image is given prompt and head of the task that
has the centroid nearest to its feature (section 4.2, K-NN with K = 1).

As in the authors' code (iamwangyabin/S-Prompts, a26e822, methods/sprompt.py and models/sinet.py),
distances are sums of absolute differences, K-means keeps the best of ten starts, prompts have no
position and the head sees the class token. Unlike in their code, K-means sees images as they are
rather than augmented, and at most `sample` of a task; and heads start at zero, where theirs are
uniform within 1 / sqrt(dim) as prompts are. Each task has room for a head of all classes, which it
fills if every domain has all classes. Classes that the chosen task does not know rank behind all
that it knows, by the logits of the tasks that do.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32, Int32, PyTree

from promptax.core.settings import MOST_SAMPLES, require_count
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
)
from promptax.methods.components.feature_sample import FeatureSample
from promptax.methods.components.kmeans import k_means
from promptax.methods.components.losses import cross_entropy
from promptax.methods.components.task_rows import own_row, train_rows
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import check_prompts, l2_normalize
from promptax.nn.prompted import class_token, require_vit
from promptax.nn.vit import Linear, ViT

FAR = 100.0
"""Coordinates of the centroids of a task that is not learned yet. Features have length 1, so every
centroid of a learned task is nearer."""
BELOW_KNOWN = 1e4
"""Subtracted from the logits of classes that the chosen task does not know: more than logits differ
by."""


class Experts(eqx.Module):
    """A frozen ViT, with prompt tokens and a head for each task."""

    backbone: ViT
    prompt: Float32[Array, "tasks length dim"]
    head: Linear
    """One head per task, stacked along the first axis."""

    def logits(
        self, images: Float[Array, "batch height width channel"], chosen: Int32[Array, " batch"]
    ) -> Float32[Array, "batch tasks classes"]:
        """Logits of all heads, of features with the prompt of the task chosen for each image."""
        feature = class_token(self.backbone, images, tokens=self.prompt[chosen])
        return jnp.einsum("bd,tdc->btc", feature, self.head.kernel) + self.head.bias


class Clusters(eqx.Module):
    """The state of S-Prompts: how tasks are recognised, and features of the current one."""

    known: Bool[Array, "tasks classes"]
    """The classes that each task has."""
    centroid: Float32[Array, "tasks clusters dim"]
    sample: FeatureSample
    """Features of the current task, of length 1."""

    def nearest_task(self, query: Float[Array, "batch dim"]) -> Int32[Array, " batch"]:
        """The task with the centroid nearest to the feature of an image without prompts."""
        feature = l2_normalize(query)[:, None, None]
        distance = jnp.abs(feature - self.centroid).sum(-1)
        return distance.min(-1).argmin(-1).astype(jnp.int32)


class SPrompts(AbstractMethod):
    """S-Prompts: a prompt and a head for each task, chosen by the nearest centroid of features."""

    length: int = 10
    """Tokens of a prompt."""
    clusters: int = 5
    """Centroids per task (K)."""
    sample: int = 10_000
    """Number of features per task that K-means sees at most."""

    def __check_init__(self):
        check_prompts(1, self.length, (0,))
        require_count("clusters", self.clusters, MOST_SAMPLES)
        require_count("sample", self.sample, MOST_SAMPLES)

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Experts, Clusters]:
        """Make zero heads, and prompts uniform within 1 / sqrt(dim)."""
        vit = require_vit(backbone)
        tasks = len(stream.tasks)
        check_prompts(tasks, self.length, (0,))
        limit = 1 / math.sqrt(vit.dim)
        prompt = jr.uniform(key, (tasks, self.length, vit.dim), minval=-limit, maxval=limit)
        one_per_task = lambda leaf: jnp.zeros((tasks, *leaf.shape))
        head = jax.tree.map(one_per_task, Linear(vit.dim, stream.num_classes))
        state = Clusters(
            known=jnp.zeros((tasks, stream.num_classes), bool),
            centroid=jnp.full((tasks, self.clusters, vit.dim), FAR, jnp.float32),
            sample=FeatureSample.empty(stream, vit.dim, self.sample),
        )
        return Experts(vit, prompt, head), state

    def trainable(self, model: Experts, task: Task) -> PyTree:
        """The task's own prompt and head."""
        own = train_rows(own_row(len(model.prompt), task))
        return only(model, lambda model: (model.prompt, model.head), own)

    def begin_task(
        self, model: Experts, state: Clusters, task: Task, *, key: Key
    ) -> tuple[Experts, Clusters]:
        """Record which classes the task has."""
        known = state.known.at[task.index].set(task.classes)
        return model, eqx.tree_at(lambda state: state.known, state, known)

    def query(self, model: Experts, images: ModelImages) -> Query:
        """The feature of each image without prompts."""
        return model.backbone(images).astype(jnp.float32)

    def loss(
        self, model: Experts, state: Clusters, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy with the task's own prompt and head."""
        chosen = jnp.full(len(batch.label), task.index)
        logits = model.logits(batch.images, chosen)[:, task.index]
        return cross_entropy(logits, batch, task.competing), (logits, state)

    def observe(
        self, model: Experts, state: Clusters, batch: Batch, task: Task, *, key: Key
    ) -> tuple[Experts, Clusters]:
        """Take the features of a batch while there is room."""
        sample = state.sample.add(l2_normalize(batch.query), batch.label, batch.weight)
        return model, Clusters(state.known, state.centroid, sample)

    def end_task(
        self, model: Experts, state: Clusters, task: Task, *, key: Key
    ) -> tuple[Experts, Clusters]:
        """Find the task's centroids, and forget its features."""
        found = k_means(state.sample.feature, state.sample.taken, self.clusters, key=key)
        centroid = state.centroid.at[task.index].set(found)
        return model, Clusters(state.known, centroid, state.sample.cleared())

    def predict(
        self, model: Experts, state: Clusters, images: ModelImages, query: Query
    ) -> Prediction:
        """Use prompt and head of the task that has the nearest centroid."""
        chosen = state.nearest_task(query)
        logits = model.logits(images, chosen)
        own = jnp.take_along_axis(logits, chosen[:, None, None], axis=1)[:, 0]
        others = (logits * state.known).sum(1) - BELOW_KNOWN
        return Prediction(jnp.where(state.known[chosen], own, others), chosen[:, None])
