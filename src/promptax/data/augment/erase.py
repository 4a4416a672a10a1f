"""Random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896)."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

_ATTEMPTS = 10
"""Draws of a rectangle before an image is left as it is (as in timm and torchvision)."""


def random_erasing(
    image: Float[Array, "height width channel"],
    key: PRNGKeyArray,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Float[Array, "height width channel"]:
    """Put standard normal noise into a rectangle of a normalised image.

    Its share of the `area` is uniform and its `aspect` (height / width) log-uniform, drawn anew
    while it would not fit.
    """
    coin, shape, noise = jr.split(key, 3)
    inside = _rectangle(shape, image.shape[0], image.shape[1], area, aspect)
    chosen = inside & jr.bernoulli(coin, probability)
    return jnp.where(chosen[..., None], jr.normal(noise, image.shape), image)


def _rectangle(
    key: PRNGKeyArray, height: int, width: int, area: tuple[float, float], aspect
) -> Bool[Array, "height width"]:
    first, second, place = jr.split(key, 3)
    pixels = height * width * jr.uniform(first, (_ATTEMPTS,), minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.asarray(aspect))
    ratio = jnp.exp(jr.uniform(second, (_ATTEMPTS,), minval=low, maxval=high))
    tall, wide = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (tall < height) & (wide < width)
    number = fits.argmax()
    extent = jnp.where(fits[number], jnp.stack([tall, wide])[:, number], 0)
    free = jnp.asarray([height, width]) - extent
    corner = jnp.floor(jr.uniform(place, (2,)) * (free + 1))
    down, across = jnp.arange(height)[:, None], jnp.arange(width)
    within = lambda at, axis: (at >= corner[axis]) & (at < corner[axis] + extent[axis])
    return within(down, 0) & within(across, 1)
