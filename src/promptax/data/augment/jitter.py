"""Colour jitter, as in Howard (2013, arXiv 1312.5402) and torchvision's `ColorJitter`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from promptax.data.augment.color import UnitImage, blend, grey, shift_hue

JITTER = ("brightness", "contrast", "saturation", "hue")
"""The names of the strengths that `color_jitter` takes."""


def color_jitter(
    image: UnitImage,
    key: PRNGKeyArray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> UnitImage:
    """Change the colours of an image in [0, 1] by random amounts, in a random order.

    A change of strength 0 is not computed.

    Args:
        image: An RGB image in [0, 1].
        key: For the order and the amounts.
        brightness, contrast, saturation: Strengths. The factor of a strength `s` is uniform
            in `[max(0, 1 - s), 1 + s]`.
        hue: The hue is rotated by a share of the circle that is uniform in `[-hue, hue]`.

    Returns:
        The image, in [0, 1].
    """
    strengths: dict[Change, float] = {
        change_brightness: brightness,
        change_contrast: contrast,
        change_saturation: saturation,
    }
    ranges = {
        change: (max(0.0, 1 - strength), 1 + strength)
        for change, strength in strengths.items()
        if strength > 0
    }
    if hue > 0:
        ranges[shift_hue] = (-hue, hue)
    return in_random_order(image, key, ranges) if ranges else image


def change_brightness(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """Scale an image; a factor of 0 gives black."""
    return blend(jnp.zeros_like(image), image, factor)


def change_contrast(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """Scale the distance to the mean grey, which a factor of 0 gives everywhere."""
    return blend(grey(image.mean((0, 1), keepdims=True)), image, factor)


def change_saturation(image: UnitImage, factor: Float[Array, ""]) -> UnitImage:
    """Scale the distance to the grey of each pixel, which a factor of 0 gives."""
    return blend(grey(image), image, factor)


Change = Callable[[UnitImage, Float[Array, ""]], UnitImage]


def in_random_order(
    image: UnitImage, key: PRNGKeyArray, ranges: dict[Change, tuple[float, float]]
) -> UnitImage:
    """Apply every change once, by an amount that is uniform in its range, in a random order."""
    order_key, amount_key = jr.split(key)
    low, high = jnp.asarray(list(ranges.values())).T
    amounts = jr.uniform(amount_key, (len(ranges),), minval=low, maxval=high)
    # Mapped over a batch, a switch computes all of its branches: at most 4 x 4 cheap passes.
    for number in jr.permutation(order_key, len(ranges)):
        image = jax.lax.switch(number, list(ranges), image, amounts[number])
    return image
