"""Random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896)."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

_ATTEMPTS = 10
"""Rectangles drawn for an image before it is left as it is (as in timm and torchvision)."""


def random_erasing(
    image: Float[Array, "height width channel"],
    key: PRNGKeyArray,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Float[Array, "height width channel"]:
    """Replace a rectangle of an image by standard normal noise.

    A rectangle that does not fit into the image is drawn again, a few times.

    Args:
        image: A normalised image, of mean 0 and deviation 1 in each channel.
        key: For the choices and the noise.
        probability: Of erasing anything.
        area: Range of the share of the image that is erased; uniform.
        aspect: Range of the height of the rectangle over its width; log-uniform.

    Returns:
        The image, of the same shape.
    """
    coin_key, rectangle_key, noise_key = jr.split(key, 3)
    size = (image.shape[0], image.shape[1])
    inside = _rectangle(size, rectangle_key, area=area, aspect=aspect)
    erased = inside & jr.bernoulli(coin_key, probability)
    return jnp.where(erased[..., None], jr.normal(noise_key, image.shape), image)


def _rectangle(
    shape: tuple[int, ...],
    key: PRNGKeyArray,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Bool[Array, "height width"]:
    """The pixels inside of a random rectangle; none if no attempt fits into the image.

    Args:
        shape: Height and width of the image.
        key: For the size and the position.
        area: Range of the share of the image.
        aspect: Range of height over width.
    """
    height, width = shape
    area_key, aspect_key, position_key = jr.split(key, 3)
    # All attempts are drawn at once, and the first that fits is used: compiled code cannot draw
    # until one fits.
    pixels = height * width * jr.uniform(area_key, (_ATTEMPTS,), minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.asarray(aspect))
    ratio = jnp.exp(jr.uniform(aspect_key, (_ATTEMPTS,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(pixels * ratio))
    widths = jnp.round(jnp.sqrt(pixels / ratio))
    fits = (heights < height) & (widths < width)
    first = fits.argmax()
    extent = jnp.where(fits[first], jnp.stack([heights, widths])[:, first], 0)
    free = jnp.asarray([height, width]) - extent
    corner = jnp.floor(jr.uniform(position_key, (2,)) * (free + 1))
    within = lambda at, axis: (at >= corner[axis]) & (at < corner[axis] + extent[axis])
    return within(jnp.arange(height)[:, None], 0) & within(jnp.arange(width), 1)
