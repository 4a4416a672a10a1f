"""What the colours of an image in [0, 1] are made of and changed by."""

import jax.numpy as jnp
from jaxtyping import Array, Float

UnitImage = Float[Array, "height width 3"]
"""RGB in [0, 1]."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as Pillow and torchvision take them)."""


def grey(image: UnitImage) -> Float[Array, "height width 1"]:
    """The luma of each pixel."""
    # Sums and maxima of three planes, here and below: over an axis of 3 they are slow on a CPU.
    red, green, blue = jnp.split(image, 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blend(
    other: Float[Array, "#height #width #c"], image: UnitImage, factor: Float[Array, ""]
) -> UnitImage:
    """`other` at a factor of 0, the image at 1, and beyond it (Haeberli and Voorhies, 1994)."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def shift_hue(image: UnitImage, turn: Float[Array, ""]) -> UnitImage:
    """Turn the hue of HSV (Smith, 1978) by a share of the circle."""
    red, green, blue = jnp.split(image, 3, axis=-1)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    apart = lambda one, two: (one - two) / jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(green == value, 2 + apart(blue, red), 4 + apart(red, green))
    sixth = jnp.where(red == value, apart(green, blue), sixth) + 6 * turn
    # Red, green and blue are the same trapezoid of the hue, a third of the circle apart.
    place = sixth + jnp.asarray([5.0, 3.0, 1.0])
    place = place - 6 * jnp.floor(place / 6)
    return jnp.clip(value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1), 0, 1)
