"""Recognising the task of an image from its feature without prompts (HiDe-Prompt, section 4.2).

A head scores each class of each task, and the task follows from the class.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from promptax.core.settings import LARGEST, MOST_EPOCHS, MOST_IN_BATCH, require, require_count
from promptax.core.types import Task
from promptax.data.stream import TaskStream
from promptax.methods.components.alignment import (
    Alignment,
    adam,
    masked_cross_entropy,
    shuffled,
    train_head,
)
from promptax.methods.components.feature_sample import FeatureSample
from promptax.methods.components.gaussians import AbstractClassStatistics, Draws
from promptax.methods.components.pairs import Pairs
from promptax.nn.layers import LayerNorm, Linear, Mlp

EXPANSION = 2
"""Width of the hidden layer of a residual head, as a multiple of that of the features."""
START_DEVIATION = 0.02
"""Standard deviation of the kernels of a residual head at first."""


class ResidualHead(eqx.Module):
    """A linear layer on normalised features, to which a two-layer MLP has been added."""

    mlp: Mlp
    norm: LayerNorm
    linear: Linear

    def __init__(self, dim: int, outputs: int, *, key: PRNGKeyArray):
        """Draw kernels from a normal distribution that is cut off at two standard deviations."""
        mlp = Mlp(dim, EXPANSION * dim, "gelu", key=key)
        layers = (mlp.hidden, mlp.out, Linear(dim, outputs))
        hidden, out, self.linear = map(_drawn, layers, jr.split(key, 3))
        self.mlp = eqx.tree_at(lambda mlp: (mlp.hidden, mlp.out), mlp, (hidden, out))
        self.norm = LayerNorm(dim, eps=1e-5)

    def __call__(self, features: Float[Array, "batch dim"]) -> Float[Array, "batch outputs"]:
        """Scores of all outputs."""
        return self.linear(self.norm(features + self.mlp(features)))


def _drawn(layer: Linear, key: PRNGKeyArray) -> Linear:
    kernel = START_DEVIATION * jr.truncated_normal(key, -2, 2, layer.kernel.shape)
    return eqx.tree_at(lambda layer: layer.kernel, layer, kernel)


class TaskIdentity(eqx.Module):
    """The head that recognises tasks, and what it is trained on."""

    head: Linear | ResidualHead
    """Scores of pairs of a task and a class, from features without prompts."""
    sample: FeatureSample | None
    """Features of images of the current task, if the head is trained on these."""

    def observed(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
    ) -> "TaskIdentity":
        """Keep the features of a batch, if the head is trained on them."""
        sample = None if self.sample is None else self.sample.add(feature, label, weight)
        return TaskIdentity(self.head, sample)

    def recognise(self, query: Float[Array, "batch dim"], pairs: Pairs) -> Int32[Array, " batch"]:
        """The task of each image, by its feature without prompts."""
        scores = jnp.where(pairs.known.reshape(-1), self.head(query), -jnp.inf)
        return (scores.argmax(1) // pairs.known.shape[1]).astype(jnp.int32)


class IdentityTraining(eqx.Module):
    """How the head that recognises tasks is trained."""

    identity_head: Literal["linear", "residual"] = "linear"
    """The head that recognises tasks: a linear layer, or one behind a residual MLP and a
    LayerNorm."""
    identity_epochs: int = 0
    """Passes of Adam over the features of a task's images, among the classes of the task, before
    the head is aligned; the head then continues from task to task. 0: after each task, the head
    starts from zero and is trained on drawn features alone."""
    identity_rate: float = 5e-5
    """Learning rate on the features of images."""
    identity_batch: int = 192
    """Features of images in a step."""
    identity_align_samples: int | None = None
    """Features drawn per class, or per centroid, to align this head; None: as for the other."""
    identity_align_batch: int | None = None
    """Features of a step of its alignment; None: as for the other head."""
    identity_align_rate: float | None = None
    """Learning rate of its alignment; None: as for the other head."""

    def __check_init__(self):
        epochs = self.identity_epochs
        require(0 <= epochs <= MOST_EPOCHS, "identity epochs", epochs, "at least 0")
        if self.identity_head == "residual":
            require(epochs > 0, "identity epochs", epochs, "at least 1 for a residual head")
        rate = self.identity_rate
        require(0 < rate <= LARGEST, "identity rate", rate, "a number above 0")
        require_count("identity batch", self.identity_batch, MOST_IN_BATCH)
        self.alignment(Alignment()).__check_init__()

    def init(self, stream: TaskStream, dim: int, most: int, *, key: PRNGKeyArray) -> TaskIdentity:
        """Make a head for all pairs of a task and a class.

        Args:
            stream: The stream.
            dim: Width of features.
            most: Features of a task that are kept for the head, at most.
            key: Randomness of the head; a linear one is zero.
        """
        outputs = len(stream.tasks) * stream.num_classes
        is_linear = self.identity_head == "linear"
        head = Linear(dim, outputs) if is_linear else ResidualHead(dim, outputs, key=key)
        needs_images = self.identity_epochs > 0
        return TaskIdentity(head, FeatureSample.empty(stream, dim, most) if needs_images else None)

    def alignment(self, other: Alignment) -> Alignment:
        """The alignment of this head, given that of the other one."""
        fields = lambda it: (it.align_samples, it.align_batch, it.align_rate)
        own = (self.identity_align_samples, self.identity_align_batch, self.identity_align_rate)
        chosen = [
            given if mine is None else mine for mine, given in zip(own, fields(other), strict=True)
        ]
        return eqx.tree_at(fields, other, chosen)

    def trained(
        self, identity: TaskIdentity, pairs: Pairs, task: Task, *, key: PRNGKeyArray
    ) -> TaskIdentity:
        """Train the head on the features of the task's images, if there are epochs for it.

        Args:
            identity: The head as the task before left it, with the features.
            pairs: All pairs that have been learned.
            task: The task that ends.
            key: Randomness of the order.
        """
        sample = identity.sample
        if sample is None:
            # A head that went on from before would favour the tasks of longer training.
            return TaskIdentity(jax.tree.map(jnp.zeros_like, identity.head), None)
        pair = pairs.number(task)[sample.label]
        features = Draws(sample.feature, pair, sample.taken.astype(jnp.float32))
        own = jnp.zeros_like(pairs.known).at[task.index].set(task.classes).reshape(-1)
        head = train_head(
            identity.head,
            lambda epoch: shuffled(features, key=jr.fold_in(key, epoch)),
            lambda scores, draws: masked_cross_entropy(scores, draws, own),
            optimizer=adam(),
            rate=lambda _: jnp.asarray(self.identity_rate),
            epochs=self.identity_epochs,
            steps=-(-sample.taken.sum() // self.identity_batch),
            size=self.identity_batch,
        )
        return TaskIdentity(head, sample.cleared())

    def aligned(
        self,
        identity: TaskIdentity,
        plain: AbstractClassStatistics,
        pairs: Pairs,
        task: Task,
        alignment: Alignment,
        *,
        key: PRNGKeyArray,
    ) -> TaskIdentity:
        """Align the head from the second task on.

        Args:
            identity: The head after `trained`.
            plain: Statistics of features without prompts, by slot of `pairs`.
            pairs: All pairs that have been learned.
            task: The task that ends.
            alignment: That of the head for all classes.
            key: Randomness of the draws.
        """
        known = pairs.known.reshape(-1)

        def aligned() -> Linear | ResidualHead:
            align = self.alignment(alignment)
            factors = plain.factors().relabelled(pairs.pair)
            loss = lambda scores, draws: masked_cross_entropy(scores, draws, known)
            return align(identity.head, factors, loss, task, learned=pairs.used, key=key)

        head = jax.lax.cond(task.index > 0, aligned, lambda: identity.head)
        return TaskIdentity(head, identity.sample)
