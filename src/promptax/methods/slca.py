"""SLCA, Slow Learner with Classifier Alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

The whole model is fine-tuned task after task, the backbone at a small fraction of the head's
learning rate (Slow Learner). After each task the head is trained anew on features drawn from a
Gaussian for each class (Classifier Alignment), with logits h divided by their norm:

    loss = CE(h / (tau |h|), y)

As in the authors' code, |h| is the mean of the norms over the classes of each task; means of
earlier classes are drawn in towards zero, by up to a tenth; 1e-4 is added to variances; the first
task is not aligned; and the next task goes on from the head as it was before. Unlike there, the
head is zero at first, and statistics are streamed in float32, where theirs are of all features at
once, in float64. A class that several domains show has one Gaussian, and one norm.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.core.settings import Alignment
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractFinetuned, ModelImages, Scores, weighted_mean
from promptax.methods.components.alignment import Learned, align
from promptax.methods.components.gaussians import Draws, Factors
from promptax.nn.classifier import Classifier


class Memory(eqx.Module):
    """Class statistics, and the task that first showed each class; -1 before."""

    learned: Learned
    owner: Int32[Array, " classes"]


class SLCA(AbstractFinetuned):
    """SLCA: slow fine-tuning of everything, and a head aligned on Gaussian class statistics."""

    backbone_rate: float = 0.01
    """Learning rate of the backbone, as a fraction of the head's."""
    temperature: float | None = 0.1
    """Temperature of the normalised logits (tau); None: logits as they are."""
    shrink: float = 0.1
    """How far the means of the first task's classes are drawn in towards zero, at most."""
    train_backbone: bool = True
    """Train the backbone too."""
    alignment: Alignment = Alignment()
    """How the head is aligned."""

    observes: ClassVar[bool] = True

    def __check_init__(self):
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; expected a finite number above 0.")
        if not 0 <= self.shrink < 1:
            raise UserError(f"shrink is {self.shrink}; expected at least 0 and below 1.")

    def memory(self, model: Classifier, stream: TaskStream) -> Memory:
        """Nothing seen yet."""
        classes = stream.num_classes
        return Memory(Learned.nothing(model.head, classes), jnp.full(classes, -1, jnp.int32))

    def begin_task(
        self, model: Classifier, memory: Memory, task: Task
    ) -> tuple[Classifier, Memory]:
        """Go back to the head before it was aligned."""
        owner = jnp.where((memory.owner < 0) & task.classes, task.index, memory.owner)
        model = eqx.tree_at(lambda model: model.head, model, memory.learned.head)
        return model, Memory(memory.learned, owner)

    def observe(
        self,
        model: Classifier,
        memory: Memory,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Add the features of a batch."""
        feature = model.features(images)
        learned = memory.learned.observed(feature, batch.label, batch.weight, key=key)
        return Memory(learned, memory.owner)

    def end_task(self, model: Classifier, memory: Memory, task: Task) -> tuple[Classifier, Memory]:
        """Keep the head, and align it."""
        learned = eqx.tree_at(lambda learned: learned.head, memory.learned, model.head)
        sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.trace(0.9))
        key, owner = jr.key(learned.seed), memory.owner

        def loss(logits: Scores, draws: Draws) -> Float[Array, ""]:
            logits = jnp.where(owner >= 0, logits / self._scale(logits, owner), -jnp.inf)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, draws.label)
            return weighted_mean(entropy, draws.weight)

        factors = drawn_in(learned.gaussians.factors(), owner, task, self.shrink)
        aligned = lambda: align(model.head, factors, self.alignment, sgd, loss, key=key)
        head = jax.lax.cond(task.index > 0, aligned, lambda: model.head)
        return eqx.tree_at(lambda model: model.head, model, head), Memory(learned, owner)

    def _scale(self, logits: Scores, owner: Int32[Array, " classes"]) -> Float[Array, "_ 1"]:
        if self.temperature is None:
            return jnp.ones((1, 1))
        return self.temperature * norm(logits, owner)


def norm(logits: Scores, owner: Int32[Array, " classes"]) -> Float32[Array, "batch 1"]:
    """Mean over tasks of the norm of the logits of the classes that each was the first to show."""
    member = jax.nn.one_hot(owner, len(owner))
    squares = jnp.square(logits) @ member
    # As the authors add 1e-7, but with a gradient where a norm is 0.
    norms = jnp.sqrt(jnp.maximum(squares, 1e-14))
    return norms.mean(1, keepdims=True, where=member.any(0))


def drawn_in(
    factors: Factors, owner: Int32[Array, " classes"], task: Task, shrink: float
) -> Factors:
    """With means of classes of task t times `1 - shrink (1 - (t + 1) / (T + 1))`, after task T."""
    age = 1 - (owner + 1) / (task.index + 1)
    return eqx.tree_at(lambda f: f.mean, factors, factors.mean * (1 - shrink * age)[:, None])
