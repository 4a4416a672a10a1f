"""Training a head anew on features drawn from Gaussian class statistics, as SLCA does (2303.05118).

Heads of tasks that were trained apart have scores of different scales. What all classes compete on
together are features of all of them, and where no image may be kept, these are drawn.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, UInt32

from promptax.core.settings import Alignment
from promptax.methods.components.gaussians import Draws, Factors, Gaussians
from promptax.nn.vit import Linear

Loss = Callable[[Float32[Array, "batch classes"], Draws], Float[Array, ""]]
"""Of logits and the features that they are of; unseen classes compete unless it masks them."""


class Learned(eqx.Module):
    """What is remembered of earlier tasks in place of images."""

    gaussians: Gaussians
    """Of the features of all tasks so far."""
    head: Linear
    """As training left it, before it was aligned: the next task goes on from there."""
    seed: UInt32[Array, ""]
    """For what is drawn at the end of the task; of the last batch that was observed."""

    @classmethod
    def nothing(cls, head: Linear, classes: int) -> "Learned":
        """Before the first task."""
        gaussians = Gaussians.empty(classes, head.kernel.shape[0])
        return cls(gaussians, head, jnp.zeros((), jnp.uint32))

    def observed(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> "Learned":
        """With the features of weight 1 of a batch."""
        gaussians = self.gaussians.add(feature, label, weight)
        return Learned(gaussians, self.head, jr.bits(key, dtype=jnp.uint32))


def align(
    head: Linear,
    factors: Factors,
    settings: Alignment,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    key: PRNGKeyArray,
) -> Linear:
    """The head after some epochs, each over features drawn anew of every seen class.

    `optimizer` gives directions; the rate falls from epoch to epoch along a cosine. There are as
    many steps as there are seen classes to draw from, which is no reason to compile again.
    """
    size = settings.align_batch
    steps = -(-factors.seen.sum() * settings.align_samples // size)

    def epoch(number: Int32[Array, ""], carry: tuple) -> tuple:
        draws = _shuffled(factors, settings.align_samples, jr.fold_in(key, number))
        rate = settings.align_rate * _cosine(number, settings)

        def step(number: Int32[Array, ""], carry: tuple) -> tuple:
            head, state = carry
            batch = _rows(draws, number * size + jnp.arange(size))
            grads = eqx.filter_grad(lambda head: loss(head(batch.feature), batch))(head)
            updates, state = optimizer.update(grads, state, head)
            return eqx.apply_updates(head, jax.tree.map(lambda x: -rate * x, updates)), state

        return jax.lax.fori_loop(0, steps, step, carry)

    start = head, optimizer.init(eqx.filter(head, eqx.is_inexact_array))
    return jax.lax.fori_loop(0, settings.align_epochs, epoch, start)[0]


def _shuffled(factors: Factors, each: int, key: PRNGKeyArray) -> Draws:
    """Draws in random order, those of seen classes first."""
    draw, mix = jr.split(key)
    draws = factors.sample(each, key=draw)
    place = jr.uniform(mix, draws.weight.shape)
    return _rows(draws, jnp.argsort(jnp.where(draws.weight > 0, place, 2.0)))


def _rows(draws: Draws, index: Int32[Array, " batch"]) -> Draws:
    """Some of the draws; of weight 0 behind the last."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, 0, mode="fill", fill_value=0), draws)


def _cosine(number: Int32[Array, ""], settings: Alignment) -> Float[Array, ""]:
    floor = settings.align_floor
    return floor + (1 - floor) * 0.5 * (1 + jnp.cos(math.pi * number / settings.align_epochs))
