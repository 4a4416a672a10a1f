"""From raw pixels to the backbone's input, on the device and inside the compiled step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt8

from promptax.core.settings import STATISTICS, Images
from promptax.data.augment.erase import random_erasing
from promptax.data.augment.jitter import JITTER, color_jitter
from promptax.data.augment.randaugment import rand_augment

RawImages = UInt8[Array, "batch height width channel"]
ModelImages = Float32[Array, "batch size size 3"]


def prepare_train(images: RawImages, config: Images, key: PRNGKeyArray) -> ModelImages:
    """Random resized crop (Szegedy et al., 2015), flip and augmentation of each image.

    In the order of timm: crop, flip, RandAugment, colour jitter, normalise, erase. What is done to
    an image depends on its place in the batch, and on no other image.
    """
    crop, flip, operations, colors, erase = jr.split(key, 5)
    augment = config.augment
    out = _unit(_random_crop(images, config, crop))
    if config.flip:
        mirror = jr.bernoulli(flip, 0.5, (len(images), 1, 1, 1))
        out = jnp.where(mirror, out[:, :, ::-1], out)
    if augment.operations > 0:
        strength = {"operations": augment.operations, "magnitude": augment.magnitude}
        out = _each(rand_augment, out, operations, **strength)
    jitter = {name: getattr(augment, name) for name in JITTER}
    if any(jitter.values()):
        out = _each(color_jitter, out, colors, **jitter)
    out = _normalize(out, config)
    if augment.erase > 0:
        shape = {"area": augment.erase_area, "aspect": augment.erase_aspect}
        out = _each(random_erasing, out, erase, probability=augment.erase, **shape)
    return out


def prepare_eval(images: RawImages, config: Images) -> ModelImages:
    """Resize, aspect ignored, and centre crop."""
    return _normalize(_unit(_centre_crop(images, config)), config)


def random_crops(key: PRNGKeyArray, count: int, config: Images) -> Float[Array, "count 4"]:
    """Crops as `top, left, height, width` in shares of the image.

    Area and log-aspect are uniform; a side that would pass the image is cut to it.
    """
    area, aspect, place = jr.split(key, 3)
    area = jr.uniform(area, (count,), minval=config.crop_area[0], maxval=config.crop_area[1])
    low, high = jnp.log(jnp.asarray(config.crop_aspect))
    aspect = jnp.exp(jr.uniform(aspect, (count,), minval=low, maxval=high))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1)
    top, left = jr.uniform(place, (2, count)) * (1 - jnp.stack([height, width]))
    return jnp.stack([top, left, height, width], axis=1)


def _random_crop(images: RawImages, config: Images, key: PRNGKeyArray):
    if config.crop_area == (1.0, 1.0):
        return _centre_crop(images, config)
    boxes = random_crops(key, len(images), config)
    # Cropping from the resized image is cropping from the original one, rescaled: one
    # interpolation instead of two.
    return jax.vmap(lambda image, box: _crop(image, box, config.size))(images, boxes)


def _centre_crop(images: RawImages, config: Images) -> Float[Array, "batch size size channel"]:
    margin = 0.5 * (1 - config.size / (config.resize or config.size))
    if images.shape[1:3] == (config.size, config.size) and margin == 0:
        return images.astype(jnp.float32)
    box = jnp.asarray([margin, margin, 1 - 2 * margin, 1 - 2 * margin])
    return jax.vmap(lambda image: _crop(image, box, config.size))(images)


def _crop(image: UInt8[Array, "height width channel"], box: Float[Array, "4"], size: int):
    extent = jnp.asarray(image.shape[:2], jnp.float32)
    scale = size / (box[2:] * extent)
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(
        image.astype(jnp.float32), shape, (0, 1), scale, -box[:2] * extent * scale, "linear"
    )


def _unit(images: Float[Array, "batch size size channel"]) -> ModelImages:
    return jnp.broadcast_to(images / 255, (*images.shape[:3], 3))


def _each(
    change: Callable[..., Array], images: ModelImages, key: PRNGKeyArray, **settings: Any
) -> ModelImages:
    one = lambda image, key: change(image, key, **settings)
    return jax.vmap(one)(images, jr.split(key, len(images)))


def _normalize(images: ModelImages, config: Images) -> ModelImages:
    if config.value_range == "unit":
        return images
    if config.value_range == "symmetric":  # to the bit as published
        return 2 * images - 1
    mean, deviation = jnp.asarray(STATISTICS[config.value_range])
    return (images - mean) / deviation
