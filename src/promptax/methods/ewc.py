"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796), also online
(Schwarz et al., ICML 2018, arXiv 1805.06370).

After task t with parameters theta_t, the diagonal of the Fisher information is

    F_t = mean over x of (d log p(y | x, theta_t) / d theta)^2,

and later tasks add lambda / 2 times the sum over all parameters of

    sum_t F_t (theta - theta_t)^2                               (`per_task`, a term for each task)
    F (theta - theta_t)^2,   F <- gamma F + F_t                 (online, one term)

The sum over tasks is, up to a constant, a single square as well: around the mean of all theta_t
weighted by F_t (cf. Huszar, PNAS 2018). Both variants therefore need the memory of two models,
whatever the number of tasks.

Labels y are those of the data (the empirical Fisher information, as most code has it) or drawn from
the model, as the definition has it. p is the softmax over the classes that competed in training,
and images are prepared as for evaluation.

A lambda from the literature means the same here only if its Fisher information is defined in the
same way. Mammoth's online code (`models/ewc_on.py` at e75a491) multiplies each square by p, takes p
over all classes, and has no factor of 1/2: its `e_lambda` is half of lambda here, with
`by_probability`. For squares without p, no factor converts one lambda into the other: their mean is
dominated by images that the model does not know yet, which have large gradients, and those are the
images for which p is small.
"""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Key, StepLoss, first_task, is_trained
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class Importance(eqx.Module):
    """The state of EWC: three numbers for each trained parameter."""

    anchor: PyTree
    """The value that the penalty pulls the parameter towards."""
    fisher: PyTree
    """Fisher information of earlier tasks: how strongly it is pulled."""
    current: PyTree
    """Sum of squared gradients over the images of the current task, while they are observed."""


class EWC(AbstractClassifier):
    """Elastic weight consolidation: parameters that earlier tasks depend on may change little."""

    coefficient: float = 100.0
    """Strength of the penalty (lambda)."""
    gamma: float = 1.0
    """Factor by which earlier Fisher information decays at each task; below 1 only without
    `per_task`."""
    per_task: bool = False
    """Pull parameters towards their values after each earlier task, rather than after the last one
    only."""
    labels: Literal["data", "model"] = "data"
    """Where the labels of the Fisher information come from."""
    by_probability: bool = False
    """Multiply the squared gradient of each image by the probability p of its label, as Mammoth
    does."""
    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""

    def __check_init__(self):
        if not 0 <= self.coefficient < math.inf:
            raise UserError(
                f"coefficient is {self.coefficient}; expected a finite number of at least 0."
            )
        if not 0 <= self.gamma <= 1 or (self.per_task and self.gamma < 1):
            raise UserError(
                f"gamma is {self.gamma}; expected between 0 and 1, and 1 with a term for each task."
            )

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, Importance]:
        """Put a zero head on the backbone; no parameter is important yet."""
        model = Classifier(backbone, stream.num_classes)
        params = eqx.filter(model, self._trained(model, first_task(stream)))
        zero = jax.tree.map(jnp.zeros_like, params)
        return model, Importance(anchor=params, fisher=zero, current=zero)

    def loss(
        self, model: Classifier, state: Importance, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy, and the penalty for moving important parameters."""
        logits = self.predict(model, state, batch.images, batch.query).logits
        params = eqx.filter(model, self._trained(model, task))
        penalty = 0.5 * self.coefficient * weighted_distance(params, state.anchor, state.fisher)
        return cross_entropy(logits, batch, task.competing) + penalty, (logits, state)

    def observe(
        self, model: Classifier, state: Importance, batch: Batch, task: Task, *, key: Key
    ) -> tuple[Classifier, Importance]:
        """Add the squared gradient of the log-likelihood of each image."""
        params, frozen = eqx.partition(model, self._trained(model, task))

        def log_likelihood(params: PyTree, image: Array, label: Array, key: Key):
            logits = eqx.combine(params, frozen)(image[None])[0]
            logits = jnp.where(task.competing, logits, -jnp.inf)
            label = jr.categorical(key, logits) if self.labels == "model" else label
            return jax.nn.log_softmax(logits)[label]

        def add(total: PyTree, example: tuple) -> tuple[PyTree, None]:
            image, label, weight, key = example
            likelihood = jax.value_and_grad(log_likelihood)
            log_p, gradient = likelihood(params, image, label, key)
            factor = jnp.exp(log_p) if self.by_probability else 1.0
            square = lambda total, part: total + jnp.where(weight > 0, factor * part**2, 0)
            return jax.tree.map(square, total, gradient), None

        # One image after another: the gradient of each takes as much memory as the model.
        keys = jr.split(key, len(batch.label))
        examples = (batch.images, batch.label, batch.weight, keys)
        current, _ = jax.lax.scan(add, state.current, examples)
        return model, Importance(state.anchor, state.fisher, current)

    def end_task(
        self, model: Classifier, state: Importance, task: Task, *, key: Key
    ) -> tuple[Classifier, Importance]:
        """Add the task's Fisher information, and move the anchor."""
        params = eqx.filter(model, self._trained(model, task))
        new = jax.tree.map(lambda total: total / task.examples, state.current)
        fisher = jax.tree.map(lambda old, new: self.gamma * old + new, state.fisher, new)
        anchor = params
        if self.per_task:
            anchor = jax.tree.map(merged_anchor, state.anchor, state.fisher, params, new)
        return model, Importance(anchor, fisher, jax.tree.map(jnp.zeros_like, fisher))

    def _trained(self, model: Classifier, task: Task) -> PyTree[bool]:
        return is_trained(self.trainable(model, task))


def weighted_distance(params: PyTree, anchor: PyTree, fisher: PyTree) -> Float[Array, ""]:
    """Sum over all leaves of `fisher * (params - anchor)^2`."""
    leaf = lambda value, anchor, fisher: (fisher * jnp.square(value - anchor)).sum()
    return sum(jax.tree.leaves(jax.tree.map(leaf, params, anchor, fisher)), jnp.zeros(()))


def merged_anchor(
    anchor: Float[Array, "*shape"],
    fisher: Float[Array, "*shape"],
    value: Float[Array, "*shape"],
    new: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """The minimum of two quadratic penalties together; the new value where both are zero.

    Args:
        anchor: Minimum of the penalty of earlier tasks.
        fisher: Its strength.
        value: Minimum of the penalty of the current task.
        new: Its strength.
    """
    both = fisher + new
    mean = (fisher * anchor + new * value) / jnp.where(both > 0, both, 1)
    return jnp.where(both > 0, mean, value)
