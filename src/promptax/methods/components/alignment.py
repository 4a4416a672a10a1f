"""Classifier alignment: training a head on features drawn from Gaussian class statistics.

Heads of tasks that were trained apart have scores of different scales. To make all classes compete,
they must be trained on features of all of them at once; if no image may be kept, these features are
drawn from a Gaussian per class. (SLCA: Zhang et al., ICCV 2023, arXiv 2303.05118, section 3.3.)
"""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray

from promptax.core.settings import (
    LARGEST,
    MOST_EPOCHS,
    MOST_IN_BATCH,
    MOST_SAMPLES,
    require,
    require_count,
)
from promptax.core.types import Task
from promptax.methods.components.gaussians import Draws, Factors
from promptax.methods.components.losses import weighted_mean

Head = TypeVar("Head", bound=eqx.Module)
"""A module that takes features to scores."""
Loss = Callable[[Float32[Array, "batch classes"], Draws], Float[Array, ""]]
"""The loss of logits and of the features that they belong to. It has to mask classes that have not
been seen."""
MOMENTUM = 0.9


class Alignment(eqx.Module):
    """How a head is trained on drawn features after each task."""

    align_epochs: int = 5
    """Passes over features, drawn anew for each pass; 0: leave the head as it is."""
    align_samples: int = 256
    """Features drawn per class, or per centroid of a class."""
    align_batch: int = 256
    """Features of a step."""
    align_rate: float = 0.01
    """Learning rate of the first epoch; it falls along a cosine."""
    align_floor: float = 0.0
    """Learning rate after the last epoch, as a share of the first."""
    align_optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum 0.9, or Adam."""
    align_decay: float = 5e-4
    """Weight decay, added to the gradient."""
    align_steps: Literal["seen", "earlier"] = "seen"
    """Number of steps in an epoch: enough to use `align_samples` features for each class seen so
    far (seen), or for each class of earlier tasks only (earlier). The features are of all classes
    either way."""

    def __check_init__(self):
        require(
            0 <= self.align_epochs <= MOST_EPOCHS, "align epochs", self.align_epochs, "at least 0"
        )
        require_count("features to align by", self.align_samples, MOST_SAMPLES)
        require_count("align batch", self.align_batch, MOST_IN_BATCH)
        require(0 < self.align_rate <= LARGEST, "align rate", self.align_rate, "a number above 0")
        require(0 <= self.align_floor <= 1, "align floor", self.align_floor, "between 0 and 1")
        require(0 <= self.align_decay <= LARGEST, "align decay", self.align_decay, "at least 0")

    def __call__(
        self,
        head: Head,
        factors: Factors,
        loss: Loss,
        task: Task,
        *,
        learned: Int32[Array, ""],
        key: PRNGKeyArray,
    ) -> Head:
        """Train a head on drawn features of every class seen so far.

        Args:
            head: The head as training left it.
            factors: The class statistics to draw from.
            loss: The loss of a batch of drawn features.
            task: The current task.
            learned: Number of classes that have been learned, those of the task included. It sets
                the number of steps, and is traced, so that more classes do not compile again.
            key: Randomness of the draws.

        Returns:
            The aligned head.
        """
        if self.align_steps == "earlier":
            learned = learned - task.classes.sum()
        decay = optax.add_decayed_weights(self.align_decay)
        direction = optax.trace(MOMENTUM) if self.align_optimizer == "sgd" else adam()

        def rate(epoch: Int32[Array, ""]) -> Float[Array, ""]:
            cosine = 0.5 * (1 + jnp.cos(math.pi * epoch / self.align_epochs))
            return self.align_rate * (self.align_floor + (1 - self.align_floor) * cosine)

        return train_head(
            head,
            lambda epoch: drawn_features(factors, self.align_samples, epoch, key=key),
            loss,
            optimizer=optax.chain(decay, direction),
            rate=rate,
            epochs=self.align_epochs,
            steps=-(-learned * self.align_samples // self.align_batch),
            size=self.align_batch,
        )


def train_head(
    head: Head,
    features: Callable[[Int32[Array, ""]], Draws],
    loss: Loss,
    *,
    optimizer: optax.GradientTransformation,
    rate: Callable[[Int32[Array, ""]], Float[Array, ""]],
    epochs: int,
    steps: Int32[Array, ""],
    size: int,
) -> Head:
    """Train a head on features rather than images.

    Args:
        head: The head at the start.
        features: The features of an epoch, in the order in which they are used.
        loss: The loss of a batch of them.
        optimizer: Turns gradients into directions.
        rate: The learning rate of an epoch.
        epochs: Passes over features.
        steps: Steps of an epoch.
        size: Features of a step. Behind the last feature, a batch is padded with weight 0.
    """

    def epoch(number: Int32[Array, ""], carry: tuple) -> tuple:
        all_features = features(number)

        def step(position: Int32[Array, ""], carry: tuple) -> tuple:
            head, opt_state = carry
            batch = _take(all_features, position * size + jnp.arange(size))
            grads = eqx.filter_grad(lambda head: loss(head(batch.feature), batch))(head)
            params = eqx.filter(head, eqx.is_inexact_array)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            updates = jax.tree.map(lambda update: -rate(number) * update, updates)
            return eqx.apply_updates(head, updates), opt_state

        return jax.lax.fori_loop(0, steps, step, carry)

    start = (head, optimizer.init(eqx.filter(head, eqx.is_inexact_array)))
    return jax.lax.fori_loop(0, epochs, epoch, start)[0]


def adam() -> optax.GradientTransformation:
    """Adam with its usual constants."""
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def masked_cross_entropy(
    logits: Float32[Array, "batch classes"], draws: Draws, classes: Bool[Array, " classes"]
) -> Float[Array, ""]:
    """Mean cross-entropy among some classes of features that were drawn."""
    masked = jnp.where(classes, logits, -jnp.inf)
    entropy = optax.softmax_cross_entropy_with_integer_labels(masked, draws.label)
    return weighted_mean(entropy, draws.weight)


def drawn_features(
    factors: Factors, each: int, epoch: Int32[Array, ""], *, key: PRNGKeyArray
) -> Draws:
    """Features of an epoch: `each` from every Gaussian, in random order."""
    draw_key, order_key = jr.split(jr.fold_in(key, epoch))
    return shuffled(factors.sample(each, key=draw_key), key=order_key)


def shuffled(draws: Draws, *, key: PRNGKeyArray) -> Draws:
    """Draws in random order, with those of weight 1 in front."""
    position = jr.uniform(key, draws.weight.shape)
    behind_all = 2.0
    return _take(draws, jnp.argsort(jnp.where(draws.weight > 0, position, behind_all)))


def _take(draws: Draws, index: Int32[Array, " batch"]) -> Draws:
    """The draws at these positions; behind the last one, draws of weight 0."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, 0, mode="fill", fill_value=0), draws)
