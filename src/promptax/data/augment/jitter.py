"""Colour jitter, as in Howard (2013, arXiv 1312.5402) and torchvision's `ColorJitter`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from promptax.data.augment.color import UnitImage, blend, grey, shift_hue

JITTER = ("brightness", "contrast", "saturation", "hue")
"""The strengths that `color_jitter` takes."""


def color_jitter(
    image: UnitImage,
    key: PRNGKeyArray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> UnitImage:
    """Change the colours of an image in [0, 1], in a random order, each by its own draw.

    A factor is uniform in `[max(0, 1 - s), 1 + s]` for a strength s, and the hue turns by a share
    of the circle that is uniform in `[-hue, hue]`. What has a strength of 0 is not computed.
    """
    factors: dict[Change, float] = {
        change_brightness: brightness,
        change_contrast: contrast,
        change_saturation: saturation,
    }
    ranges = {change: (max(0.0, 1 - s), 1 + s) for change, s in factors.items() if s > 0}
    if hue > 0:
        ranges[shift_hue] = (-hue, hue)
    return in_random_order(image, key, ranges) if ranges else image


def change_brightness(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """From black at 0."""
    return blend(jnp.zeros_like(image), image, factor)


def change_contrast(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """From the mean grey at 0."""
    return blend(grey(image.mean((0, 1), keepdims=True)), image, factor)


def change_saturation(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """From grey at 0."""
    return blend(grey(image), image, factor)


Change = Callable[[UnitImage, Float[Array, ""]], UnitImage]


def in_random_order(
    image: UnitImage, key: PRNGKeyArray, ranges: dict[Change, tuple[float, float]]
) -> UnitImage:
    """Apply every change once, by an amount that is uniform in its range."""
    order, draw = jr.split(key)
    low, high = jnp.asarray(list(ranges.values())).T
    amounts = jr.uniform(draw, (len(ranges),), minval=low, maxval=high)
    # Over a batch the switch computes every change at every place: at most 16 cheap passes.
    for number in jr.permutation(order, len(ranges)):
        image = jax.lax.switch(number, list(ranges), image, amounts[number])
    return image
