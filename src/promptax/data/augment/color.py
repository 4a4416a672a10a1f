"""What the colours of an image in [0, 1] are made of and changed by."""

import jax.numpy as jnp
from jaxtyping import Array, Float

UnitImage = Float[Array, "height width 3"]
"""RGB in [0, 1]."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as Pillow and torchvision take them)."""


def grey(image: UnitImage) -> Float[Array, "height width 1"]:
    """The luma of each pixel."""
    return (image * jnp.asarray(LUMA)).sum(-1, keepdims=True)


def blend(
    other: Float[Array, "#height #width #c"], image: UnitImage, factor: Float[Array, ""]
) -> UnitImage:
    """`other` at a factor of 0, the image at 1, and beyond it (Haeberli and Voorhies, 1994)."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def shift_hue(image: UnitImage, turn: Float[Array, ""]) -> UnitImage:
    """Turn the hue of HSV (Smith, 1978) by a share of the circle."""
    value = image.max(-1, keepdims=True)
    chroma = value - image.min(-1, keepdims=True)
    red, green, blue = jnp.split(image / jnp.where(chroma > 0, chroma, 1), 3, axis=-1)
    sixth = jnp.where(
        image[..., :1] == value,
        green - blue,
        jnp.where(image[..., 1:2] == value, 2 + blue - red, 4 + red - green),
    )
    # Red, green and blue are the same trapezoid of the hue, a third of the circle apart.
    place = (jnp.asarray([5.0, 3.0, 1.0]) + sixth + 6 * turn) % 6
    return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
