"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218).

A prompt is a sum of M components P_m. Each is weighted by the cosine of its key K_m and the query
q(x), in which its attention vector A_m picks the features that matter (section 4, for each block):

    p(x) = sum over m of  cos(q(x) * A_m, K_m) P_m

It is a prefix: its first half precedes the keys of a block, its second half the values. Every task
has M / tasks components of its own and trains them with those of earlier tasks frozen. Components
of later tasks are zero here, so they add nothing, and the model is the same function in training
and at test time. The loss is cross-entropy among the task's classes plus, with the components of
all tasks so far as rows of B,

    lambda * sum over B in (P, K, A) of |B B^T - I|^2 / rows^2,

summed over blocks.

Where the paper differs, this follows the authors' last code (GT-RIPL/CODA-Prompt, 6417d4f,
models/zoo.py): the term is a mean of squares, where the paper writes a norm; and components start
with each task, orthonormal to one another and to the earlier ones, where the paper (and the first
version, 22948d2, in which the term also has a factor of 1e-6) draws all M orthonormal before the
first task. That code computes the term on each of its GPUs and adds the results up, which
multiplies lambda by the number of GPUs; and its last scripts set lambda to 0
(experiments/cifar-100.sh).

Unlike in their code, new components are orthogonal to an orthonormal basis of the earlier ones;
theirs are projected on each earlier one by itself, which makes them orthogonal only if these still
are after training. And the head starts at zero, where theirs is uniform within 1 / sqrt(dim).
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST, require
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
from promptax.methods.components.growth import for_longer_stream
from promptax.methods.components.losses import cross_entropy
from promptax.methods.components.orthonormal import orthogonality, orthonormal_rows
from promptax.methods.components.task_rows import own_columns, train_rows
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import check_prompts, l2_normalize
from promptax.nn.prompted import check_blocks, class_token, require_vit
from promptax.nn.vit import Linear, ViT


class DecomposedViT(eqx.Module):
    """A ViT with a head, and prompts that are put together from components."""

    backbone: ViT
    head: Linear
    prompt: Float32[Array, "layers components 2 length heads head_dim"]
    key: Float32[Array, "layers components dim"]
    attention: Float32[Array, "layers components dim"]
    layers: tuple[int, ...] = eqx.field(static=True)
    tasks: int = eqx.field(static=True)
    """Number of tasks that the components are divided among; any remainder stays unused."""

    @property
    def per_task(self) -> int:
        """Number of components of each task."""
        return self.key.shape[1] // self.tasks

    def owner(self) -> Array:
        """The task that each component belongs to."""
        return jnp.arange(self.key.shape[1]) // self.per_task

    def __call__(
        self, images: Float[Array, "batch height width channel"], query: Float[Array, "batch dim"]
    ) -> Float32[Array, "batch classes"]:
        """Logits over all classes, of images and their features without prompts."""
        weights = component_weights(query, self.key, self.attention)
        prefix = jnp.einsum("gbm,gmclhd->gbclhd", weights, self.prompt)
        prefixes = dict(zip(self.layers, prefix, strict=True))
        return self.head(class_token(self.backbone, images, prefixes=prefixes))


def _components(model: DecomposedViT) -> tuple[Any, Any, Any]:
    """The arrays that have a row per component, in axis 1."""
    return model.prompt, model.key, model.attention


class CODAPrompt(AbstractMethod):
    """CODA-Prompt: prompts are weighted sums of components, of which each task adds some."""

    components: int = 100
    """Components in all (M); each task has an equal share."""
    length: int = 8
    """Length of a component (L_p), half of it keys and half values."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with a prompt."""
    orthogonality: float = 0.1
    """Weight of the term that keeps components, keys and attention orthonormal (lambda)."""

    def __check_init__(self):
        check_prompts(self.components, self.length, self.layers)
        require(self.length % 2 == 0, "length", self.length, "an even number, for halves")
        strength = self.orthogonality
        require(0 <= strength <= LARGEST, "orthogonality", strength, f"0 to {LARGEST:g}")

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[DecomposedViT, None]:
        """Make a zero head, and components that are zero until their task begins."""
        vit = require_vit(backbone)
        check_blocks(vit, self.layers)
        tasks = len(stream.tasks)
        if self.components > vit.dim:
            raise UserError(
                f"{self.components} components cannot be orthogonal in a ViT of width {vit.dim}: "
                f"choose at most {vit.dim}."
            )
        if tasks > self.components:
            raise UserError(
                f"{self.components} components cannot be shared out to {tasks} tasks: choose at "
                f"least {tasks}."
            )
        heads = vit.config.heads
        rows = (len(self.layers), self.components)
        model = DecomposedViT(
            backbone=vit,
            head=Linear(vit.dim, stream.num_classes),
            prompt=jnp.zeros((*rows, 2, self.length // 2, heads, vit.dim // heads)),
            key=jnp.zeros((*rows, vit.dim)),
            attention=jnp.zeros((*rows, vit.dim)),
            layers=self.layers,
            tasks=tasks,
        )
        return model, None

    def trainable(self, model: DecomposedViT, task: Task) -> PyTree:
        """The head, and the task's own components."""
        own = train_rows(model.owner() == task.index, axis=1)
        head = only(model, lambda model: model.head, own_columns(task))
        return union(head, only(model, _components, own))

    def begin_task(
        self, model: DecomposedViT, state: Any, task: Task, *, key: Key
    ) -> tuple[DecomposedViT, Any]:
        """Draw the components of the task at random."""
        own = model.owner() == task.index
        keys = jr.split(key, 3)
        drawn = [
            orthonormal_rows(part, own, key=key)
            for part, key in zip(_components(model), keys, strict=True)
        ]
        return eqx.tree_at(_components, model, drawn), state

    def query(self, model: DecomposedViT, images: ModelImages) -> Query:
        """The class token without prompts, from frozen weights."""
        return class_token(model.backbone, images)

    def loss(
        self, model: DecomposedViT, state: Any, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy, and the distance of the components from being orthonormal."""
        logits = model(batch.images, batch.query)
        used = model.owner() <= task.index
        penalty = sum(orthogonality(part, used) for part in _components(model))
        loss = cross_entropy(logits, batch, task.competing)
        return loss + self.orthogonality * penalty, (logits, state)

    def predict(
        self, model: DecomposedViT, state: Any, images: ModelImages, query: Query
    ) -> Prediction:
        """Use the components of all tasks so far."""
        return Prediction(model(images, query))


def component_weights(
    query: Float[Array, "batch dim"],
    key: Float[Array, "layers components dim"],
    attention: Float[Array, "layers components dim"],
) -> Float[Array, "layers batch components"]:
    """Cosine of each key and of the query times its attention vector; 0 for zero vectors."""
    # Two matrix products: the attended queries themselves would fill the memory.
    product = jnp.einsum("bd,gmd->gbm", query, attention * l2_normalize(key))
    square = jnp.einsum("bd,gmd->gbm", jnp.square(query), jnp.square(attention))
    return product * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


@for_longer_stream.register(CODAPrompt)
def _with_components_for_each_task(method: CODAPrompt, before: int, tasks: int) -> CODAPrompt:
    """Let each new task add as many components as those before it did."""
    return replace(method, components=method.components // before * tasks)
