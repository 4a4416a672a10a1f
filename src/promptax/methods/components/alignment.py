"""Classifier alignment: training a head on features drawn from Gaussian class statistics.

Heads of tasks that were trained apart have scores of different scales. To make all classes compete,
they must be trained on features of all of them at once; if no image may be kept, these features are
drawn from a Gaussian per class. (SLCA: Zhang et al., ICCV 2023, arXiv 2303.05118, section 3.3.)
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from promptax.core.settings import (
    LARGEST,
    MOST_EPOCHS,
    MOST_IN_BATCH,
    MOST_SAMPLES,
    require,
    require_count,
)
from promptax.methods.components.gaussians import Draws, Factors
from promptax.nn.vit import Linear

Loss = Callable[[Float32[Array, "batch classes"], Draws], Float[Array, ""]]
"""The loss of logits and of the drawn features that they belong to. It has to mask classes that
have not been seen."""


class Alignment(eqx.Module):
    """How a head is trained on drawn features after each task."""

    align_epochs: int = 5
    """Passes over features, drawn anew for each pass; 0: leave the head as it is."""
    align_samples: int = 256
    """Features drawn per class."""
    align_batch: int = 256
    """Features of a step."""
    align_rate: float = 0.01
    """Learning rate of the first epoch; it falls along a cosine."""
    align_floor: float = 0.0
    """Learning rate after the last epoch, as a share of the first."""

    def __check_init__(self):
        require(
            0 <= self.align_epochs <= MOST_EPOCHS, "align epochs", self.align_epochs, "at least 0"
        )
        require_count("features to align by", self.align_samples, MOST_SAMPLES)
        require_count("align batch", self.align_batch, MOST_IN_BATCH)
        require(0 < self.align_rate <= LARGEST, "align rate", self.align_rate, "a number above 0")
        require(0 <= self.align_floor <= 1, "align floor", self.align_floor, "between 0 and 1")

    def __call__(
        self,
        head: Linear,
        factors: Factors,
        optimizer: optax.GradientTransformation,
        loss: Loss,
        *,
        key: PRNGKeyArray,
    ) -> Linear:
        """Train a head on drawn features of every class seen so far.

        The number of steps grows with the number of seen classes, which is a traced value, so that
        more classes do not compile again.

        Args:
            head: The head as training left it.
            factors: The class statistics to draw from.
            optimizer: Turns gradients into directions; the learning rate is ours.
            loss: The loss of a batch of drawn features.
            key: Randomness of the draws.

        Returns:
            The aligned head.
        """
        size = self.align_batch
        steps = -(-factors.seen.sum() * self.align_samples // size)

        def epoch(number: Int32[Array, ""], carry: tuple) -> tuple:
            draws = _shuffled_draws(factors, self.align_samples, jr.fold_in(key, number))
            rate = self.align_rate * self._cosine(number)

            def step(number: Int32[Array, ""], carry: tuple) -> tuple:
                head, opt_state = carry
                batch = _take(draws, number * size + jnp.arange(size))
                grads = eqx.filter_grad(lambda head: loss(head(batch.feature), batch))(head)
                updates, opt_state = optimizer.update(grads, opt_state, head)
                updates = jax.tree.map(lambda update: -rate * update, updates)
                return eqx.apply_updates(head, updates), opt_state

            return jax.lax.fori_loop(0, steps, step, carry)

        start = (head, optimizer.init(eqx.filter(head, eqx.is_inexact_array)))
        return jax.lax.fori_loop(0, self.align_epochs, epoch, start)[0]

    def _cosine(self, epoch: Int32[Array, ""]) -> Float[Array, ""]:
        """The rate of an epoch as a share of the first."""
        cosine = 0.5 * (1 + jnp.cos(math.pi * epoch / self.align_epochs))
        return self.align_floor + (1 - self.align_floor) * cosine


def _shuffled_draws(factors: Factors, each: int, key: PRNGKeyArray) -> Draws:
    """Draws in random order, with those of seen classes (weight 1) in front."""
    draw_key, order_key = jr.split(key)
    draws = factors.sample(each, key=draw_key)
    position = jr.uniform(order_key, draws.weight.shape)
    behind_all = 2.0
    return _take(draws, jnp.argsort(jnp.where(draws.weight > 0, position, behind_all)))


def _take(draws: Draws, index: Int32[Array, " batch"]) -> Draws:
    """The draws at these positions; behind the last one, draws of weight 0."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, 0, mode="fill", fill_value=0), draws)
