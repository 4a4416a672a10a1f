"""Operations on the colours of an image in [0, 1]: grey, blending and hue."""

import jax.numpy as jnp
from jaxtyping import Array, Float

UnitImage = Float[Array, "height width 3"]
"""RGB in [0, 1]."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as in Pillow and torchvision)."""


def grey(image: UnitImage) -> Float[Array, "height width 1"]:
    """The luma of each pixel: the weighted mean of its colours."""
    # The channels are split, here and below, because reductions over an axis of 3 are slow on a
    # CPU.
    red, green, blue = jnp.split(image, 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blend(
    other: Float[Array, "#height #width #c"], image: UnitImage, factor: Float[Array, ""]
) -> UnitImage:
    """Interpolate from `other` (a factor of 0) to the image (1), or extrapolate beyond it.

    (Haeberli and Voorhies, 1994.)
    """
    return jnp.clip(other + factor * (image - other), 0, 1)


def shift_hue(image: UnitImage, turn: Float[Array, ""]) -> UnitImage:
    """Rotate the hue (in HSV; Smith, 1978) by `turn`, a share of the full circle."""
    red, green, blue = jnp.split(image, 3, axis=-1)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    relative = lambda one, two: (one - two) / jnp.where(chroma > 0, chroma, 1)
    # The hue in sixths of the circle, by the channel that is largest.
    hue = jnp.where(green == value, 2 + relative(blue, red), 4 + relative(red, green))
    hue = jnp.where(red == value, relative(green, blue), hue) + 6 * turn
    # As functions of the hue, red, green and blue are the same trapezoid, shifted by a third of
    # the circle each.
    phase = hue + jnp.asarray([5.0, 3.0, 1.0])
    phase = phase - 6 * jnp.floor(phase / 6)
    return jnp.clip(value - chroma * jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1), 0, 1)
