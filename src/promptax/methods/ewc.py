"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796), also online
(Schwarz et al., ICML 2018, arXiv 1805.06370).

After task t with parameters theta_t, the diagonal of the Fisher information is

    F_t = mean over x of (d log p(y | x, theta_t) / d theta)^2,

and later tasks add lambda / 2 * sum over the parameters of

    sum_t F_t (theta - theta_t)^2                               (`per_task`, a term for each task)
    F (theta - theta_t)^2,   F <- gamma F + F_t                 (online, one term)

Up to a constant, the sum over tasks is one square too, around the mean of all theta_t that F_t
weights (cf. Huszar, PNAS 2018), so both need the memory of two models whatever the number of tasks.

Labels y are those of the data (the empirical Fisher, as most code has it) or drawn from the model,
as the definition has it. p is the softmax over the classes that competed in training, and images
are prepared as for evaluation. Mammoth's online code multiplies each square by p and has no 1/2.
"""

import math
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractFinetuned, ModelImages, Scores
from promptax.nn.classifier import Classifier


class Importance(eqx.Module):
    """Of each trainable leaf."""

    anchor: PyTree
    """The values to stay near to."""
    fisher: PyTree
    """How much each value matters to earlier tasks."""
    current: PyTree
    """Sum of squared gradients over the images of the current task."""


class EWC(AbstractFinetuned):
    """Elastic weight consolidation: values that mattered to earlier tasks are held by springs."""

    coefficient: float = 100.0
    """Strength of the springs (lambda)."""
    gamma: float = 1.0
    """What is left of the earlier importance after each task; below 1 with `per_task` off only."""
    per_task: bool = False
    """Hold values near to those after each task, rather than after the last."""
    labels: Literal["data", "model"] = "data"
    """Where the labels of the Fisher information come from."""
    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""

    observes: ClassVar[bool] = True

    def __check_init__(self):
        if not 0 <= self.coefficient < math.inf:
            raise UserError(
                f"coefficient is {self.coefficient}; expected a finite number of at least 0."
            )
        if not 0 <= self.gamma <= 1 or (self.per_task and self.gamma < 1):
            raise UserError(
                f"gamma is {self.gamma}; expected between 0 and 1, and 1 with a term for each task."
            )

    def memory(self, model: Classifier, stream: TaskStream) -> Importance:
        """Nothing matters yet."""
        params = eqx.filter(model, self.trainable(model))
        zero = jax.tree.map(jnp.zeros_like, params)
        return Importance(params, zero, zero)

    def penalty(
        self,
        model: Classifier,
        memory: Importance,
        images: ModelImages,
        batch: Batch,
        task: Task,
        logits: Scores,
    ) -> Float[Array, ""] | float:
        """The energy of the springs."""
        if self.coefficient == 0:
            return 0.0
        params = eqx.filter(model, self.trainable(model))
        return 0.5 * self.coefficient * energy(params, memory.anchor, memory.fisher)

    def observe(
        self,
        model: Classifier,
        memory: Importance,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Importance:
        """Add the squared gradient of each image, one after another: all at once would take the
        memory of a model for each."""
        params, frozen = eqx.partition(model, self.trainable(model))

        def log_likelihood(params: PyTree, image: Array, label: Array, key: PRNGKeyArray):
            logits = eqx.combine(params, frozen)(image[None])[0]
            logits = jnp.where(self.competing(task), logits, -jnp.inf)
            label = jr.categorical(key, logits) if self.labels == "model" else label
            return jax.nn.log_softmax(logits)[label]

        def add(total: PyTree, example: tuple) -> tuple[PyTree, None]:
            image, label, weight, key = example
            gradient = jax.grad(log_likelihood)(params, image, label, key)
            square = lambda total, part: total + jnp.where(weight > 0, jnp.square(part), 0)
            return jax.tree.map(square, total, gradient), None

        keys = jr.split(key, len(images))
        examples = (images, batch.label, batch.weight, keys)
        current, _ = jax.lax.scan(add, memory.current, examples)
        return Importance(memory.anchor, memory.fisher, current)

    def end_task(
        self, model: Classifier, memory: Importance, task: Task
    ) -> tuple[PyTree, Importance]:
        """Add the task's Fisher information, and move the anchor."""
        params = eqx.filter(model, self.trainable(model))
        new = jax.tree.map(lambda total: total / task.examples, memory.current)
        fisher = jax.tree.map(lambda old, new: self.gamma * old + new, memory.fisher, new)
        anchor = params
        if self.per_task:
            anchor = jax.tree.map(merged_anchor, memory.anchor, memory.fisher, params, new)
        return model, Importance(anchor, fisher, jax.tree.map(jnp.zeros_like, fisher))


def energy(params: PyTree, anchor: PyTree, fisher: PyTree) -> Float[Array, ""]:
    """The weighted sum of squared distances over all leaves."""
    leaf = lambda value, anchor, fisher: (fisher * jnp.square(value - anchor)).sum()
    return sum(jax.tree.leaves(jax.tree.map(leaf, params, anchor, fisher)), jnp.zeros(()))


def merged_anchor(
    anchor: Float[Array, "*shape"],
    fisher: Float[Array, "*shape"],
    value: Float[Array, "*shape"],
    new: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Where two springs together rest; the new value where neither holds."""
    both = fisher + new
    mean = (fisher * anchor + new * value) / jnp.where(both > 0, both, 1)
    return jnp.where(both > 0, mean, value)
