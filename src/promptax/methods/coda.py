"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218).

A prompt is a sum of M components P_m, each weighted by how well its key K_m agrees with the query
q(x), of which its attention vector A_m picks the features that matter (section 4, for each block):

    p(x) = sum over m of  cos(q(x) * A_m, K_m) P_m

It is a prefix: its first half precedes the keys of a block, its second half the values. Every task
has M / tasks components of its own, and trains these with those of earlier tasks frozen; later ones
are zero here, so that they add nothing, and the model is the same function at training and test.
The loss is cross-entropy among the task's classes plus, with the components of all tasks so far as
rows of B,

    lambda * sum over B in (P, K, A) of |B B^T - I|^2 / rows^2,

summed over blocks. The paper writes the norm without square and mean; this is the authors' last
code, whose first version has a factor of 1e-6 besides. As in that last code, components start with
each task, orthonormal to one another and to the earlier ones: in the paper, and in the first
version, all M are drawn orthonormal before the first task. That code projects on each earlier
component by itself, which is orthogonal only where these are; here it is on an orthonormal basis
of them. The head starts at zero.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST
from promptax.core.types import Batch, Task
from promptax.methods.base import (
    AbstractTaskwise,
    ModelImages,
    Prediction,
    Scores,
    masked_cross_entropy,
    only,
)
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import Vote, check_prompts, l2_normalize
from promptax.nn.prompted import check_blocks, class_token, require_vit
from promptax.nn.vit import Linear, ViT


class DecomposedViT(eqx.Module):
    """A ViT with a head, and prompts that are put together from components."""

    backbone: ViT
    head: Linear
    prompt: Float32[Array, "layers components 2 length heads head_dim"]
    key: Float32[Array, "layers components dim"]
    attention: Float32[Array, "layers components dim"]
    random: PRNGKeyArray
    """What components are drawn with when their task begins."""
    layers: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        query: Float[Array, "batch dim"],
    ) -> Float32[Array, "batch classes"]:
        """Logits over all classes, of images and their features without prompts."""
        weights = component_weights(query, self.key, self.attention)
        prefix = jnp.einsum("gbm,gmclhd->gbclhd", weights, self.prompt)
        prefixes = dict(zip(self.layers, prefix, strict=True))
        return self.head(class_token(self.backbone, images, prefixes=prefixes))


class CODAPrompt(AbstractTaskwise):
    """CODA-Prompt: prompts are weighted sums of components, of which each task adds some."""

    components: int = 100
    """Components in all (M); each task has an equal share."""
    length: int = 8
    """Length of a component (L_p), half of it keys and half values."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with a prompt."""
    tasks: int = 10
    """Tasks that the components are shared out to."""
    orthogonality: float = 0.1
    """Weight of the term that keeps components, keys and attention orthonormal (lambda)."""

    def __check_init__(self):
        check_prompts(self.components, self.length, self.layers)
        if self.length % 2:
            raise UserError(f"length is {self.length}; expected an even number, for halves.")
        if not 1 <= self.tasks <= self.components:
            raise UserError(
                f"{self.components} components cannot be shared out to {self.tasks} tasks."
            )
        if not 0 <= self.orthogonality <= LARGEST:
            raise UserError(
                f"orthogonality is {self.orthogonality}; expected a number from 0 to {LARGEST:g}."
            )

    def init(
        self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray
    ) -> DecomposedViT:
        """A zero head, and components that are zero until their task begins."""
        vit = require_vit(backbone)
        check_blocks(vit, self.layers)
        if self.components > vit.dim:
            raise UserError(
                f"{self.components} components cannot be orthogonal in a ViT of width {vit.dim}: "
                f"choose at most {vit.dim}."
            )
        rows, heads = (len(self.layers), self.components), vit.config.heads
        prompt = jnp.zeros((*rows, 2, self.length // 2, heads, vit.dim // heads))
        zero = jnp.zeros((*rows, vit.dim))
        head = Linear(vit.dim, num_classes)
        return DecomposedViT(vit, head, prompt, zero, zero, key, self.layers)

    def trainable(self, model: DecomposedViT) -> PyTree:
        """Components, keys, attention vectors and head."""
        return only(model, lambda model: (*_parts(model), model.head))

    def share(self, params: DecomposedViT, task: Task) -> PyTree:
        """The task's own components, and the head."""
        own = self.own_components(task)[:, None]
        everything = jax.tree.map(lambda _: True, params)
        return eqx.tree_at(_parts, everything, (own[..., None, None, None], own, own))

    def own_components(self, task: Task) -> Bool[Array, " components"]:
        """Where those of the task are; what does not divide among tasks is not used."""
        return jnp.arange(self.components) // (self.components // self.tasks) == task.index

    def begin_task(
        self, model: DecomposedViT, memory: Any, task: Task
    ) -> tuple[DecomposedViT, PyTree]:
        """Draw the task's components."""
        own, keys = self.own_components(task), jr.split(jr.fold_in(model.random, task.index), 3)
        drawn = [
            orthonormal(part, own, key=key) for part, key in zip(_parts(model), keys, strict=True)
        ]
        return eqx.tree_at(_parts, model, drawn), memory

    def query(self, model: DecomposedViT, images: ModelImages) -> Float32[Array, "batch query"]:
        """The class token without prompts, from frozen weights."""
        return class_token(jax.lax.stop_gradient(model.backbone), images)

    def loss(
        self,
        model: DecomposedViT,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """Cross-entropy and what is left to orthogonality."""
        logits = model(images, self.query_of(model, images, batch))
        loss = masked_cross_entropy(logits, batch, self.competing(task))
        used = jnp.arange(self.components) < (task.index + 1) * (self.components // self.tasks)
        penalty = sum(orthogonality(part, used) for part in _parts(model))
        return loss + self.orthogonality * penalty, logits

    def predict(
        self,
        model: DecomposedViT,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """With the components of all tasks so far."""
        return Prediction(model(images, query), jnp.zeros((len(images), 0), jnp.int32))


def component_weights(
    query: Float[Array, "batch dim"],
    key: Float[Array, "layers components dim"],
    attention: Float[Array, "layers components dim"],
) -> Float[Array, "layers batch components"]:
    """The cosine of each key and of the query that its attention vector has passed; 0 for zeros."""
    # Two matrix products, where the attended queries themselves would fill the memory.
    product = jnp.einsum("bd,gmd->gbm", query, attention * l2_normalize(key))
    square = jnp.einsum("bd,gmd->gbm", jnp.square(query), jnp.square(attention))
    return product * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def orthogonality(
    rows: Float[Array, "layers components *rest"], used: Bool[Array, " components"]
) -> Float[Array, ""]:
    """The mean square of what the products of rows in use differ from the unit matrix by."""
    flat = rows.reshape(*rows.shape[:2], -1)
    excess = jnp.einsum("gmd,gnd->gmn", flat, flat) - jnp.eye(flat.shape[1])
    square = jnp.where(used & used[:, None], jnp.square(excess), 0)
    return square.sum() / jnp.square(used.sum())


def orthonormal(
    rows: Float[Array, "layers components *rest"],
    own: Bool[Array, " components"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "layers components *rest"]:
    """The rows with those of `own` drawn anew, orthonormal and orthogonal to those before."""
    flat = rows.reshape(*rows.shape[:2], -1)
    drawn = jnp.where(own[:, None], jr.normal(key, flat.shape), flat)
    return jnp.where(own[:, None], jax.vmap(_gram_schmidt)(drawn), flat).reshape(rows.shape)


def _gram_schmidt(rows: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
    """Each row without its part in the span of those before, at length 1; zero where none is left.

    Not `jnp.linalg.qr`, which can wait for ever where it is mapped over layers (jaxlib 0.10: a
    batch of them waits, on the CPU's threads, for tasks that are for the same threads).
    """

    def add(basis: Array, number: Array) -> tuple[Array, None]:
        row = rows[number]
        left = row
        for _ in range(2):  # once leaves the rounding errors of a row that is nearly in the span
            left = left - basis.T @ (basis @ left)
        length = jnp.linalg.norm(left)
        is_new = length > 1e-5 * jnp.linalg.norm(row)
        return basis.at[number].set(jnp.where(is_new, left / length, 0)), None

    return jax.lax.scan(add, jnp.zeros_like(rows), jnp.arange(len(rows)))[0]


def _parts(model: DecomposedViT):
    return model.prompt, model.key, model.attention
