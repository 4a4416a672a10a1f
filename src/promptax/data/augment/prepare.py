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
    """Prepare images for training: random resized crop (Szegedy et al., 2015), flip, augmentation.

    The order is that of timm: crop, flip, RandAugment, colour jitter, normalise, erase. An image
    is treated by its position in the batch and independently of the other images, so that a batch
    that is divided among devices is prepared as a whole one would be.
    """
    crop_key, flip_key, operation_key, jitter_key, erase_key = jr.split(key, 5)
    augment = config.augment
    out = _unit(_random_crop(images, config, crop_key))
    if config.flip:
        mirrored = jr.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        out = jnp.where(mirrored, out[:, :, ::-1], out)
    if augment.operations > 0:
        out = _each(
            rand_augment,
            out,
            operation_key,
            operations=augment.operations,
            magnitude=augment.magnitude,
        )
    jitter = {name: getattr(augment, name) for name in JITTER}
    if any(jitter.values()):
        out = _each(color_jitter, out, jitter_key, **jitter)
    out = _normalize(out, config)
    if augment.erase > 0:
        out = _each(
            random_erasing,
            out,
            erase_key,
            probability=augment.erase,
            area=augment.erase_area,
            aspect=augment.erase_aspect,
        )
    return out


def prepare_eval(images: RawImages, config: Images) -> ModelImages:
    """Prepare images for evaluation: resize to a square, whatever their aspect, and centre crop."""
    return _normalize(_unit(_centre_crop(images, config)), config)


def random_crops(key: PRNGKeyArray, count: int, config: Images) -> Float[Array, "count 4"]:
    """Random crops, as `top, left, height, width` in shares of the image.

    The area is uniform and the aspect (width over height) log-uniform, in the ranges of `config`.
    A side that is longer than the image is cut to it.
    """
    area_key, aspect_key, position_key = jr.split(key, 3)
    smallest, largest = config.crop_area
    area = jr.uniform(area_key, (count,), minval=smallest, maxval=largest)
    low, high = jnp.log(jnp.asarray(config.crop_aspect))
    aspect = jnp.exp(jr.uniform(aspect_key, (count,), minval=low, maxval=high))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1)
    top, left = jr.uniform(position_key, (2, count)) * (1 - jnp.stack([height, width]))
    return jnp.stack([top, left, height, width], axis=1)


def _random_crop(
    images: RawImages, config: Images, key: PRNGKeyArray
) -> Float[Array, "batch size size channel"]:
    if config.crop_area == (1.0, 1.0):
        return _centre_crop(images, config)
    crops = random_crops(key, len(images), config)
    # A crop of the resized image is a crop of the original one at another scale, which needs one
    # interpolation instead of two.
    return jax.vmap(lambda image, crop: _crop(image, crop, config))(images, crops)


def _centre_crop(images: RawImages, config: Images) -> Float[Array, "batch size size channel"]:
    margin = 0.5 * (1 - config.size / (config.resize or config.size))
    if images.shape[1:3] == (config.size, config.size) and margin == 0:
        return images.astype(jnp.float32)
    crop = jnp.asarray([margin, margin, 1 - 2 * margin, 1 - 2 * margin])
    return jax.vmap(lambda image: _crop(image, crop, config))(images)


def _crop(
    image: UInt8[Array, "height width channel"], crop: Float[Array, "4"], config: Images
) -> Float[Array, "size size channel"]:
    """Resize a crop, as `random_crops` describes it, to a square, with antialiasing."""
    size = config.size
    corner = crop[:2]
    share = crop[2:]
    extent = jnp.asarray(image.shape[:2], jnp.float32)
    scale = size / (share * extent)
    resized = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        shape=(size, size, image.shape[-1]),
        spatial_dims=(0, 1),
        scale=scale,
        translation=-corner * extent * scale,
        method="linear" if config.interpolation == "bilinear" else "cubic",
    )
    # Cubic interpolation overshoots at edges.
    return resized if config.interpolation == "bilinear" else jnp.clip(resized, 0, 255)


def _unit(images: Float[Array, "batch size size channel"]) -> ModelImages:
    """Bring 0 .. 255 to [0, 1], and grey images to three channels."""
    return jnp.broadcast_to(images / 255, (*images.shape[:3], 3))


def _each(
    change: Callable[..., Array], images: ModelImages, key: PRNGKeyArray, **settings: Any
) -> ModelImages:
    """Change each image with a key of its own."""
    change_one = lambda image, key: change(image, key, **settings)
    return jax.vmap(change_one)(images, jr.split(key, len(images)))


def _normalize(images: ModelImages, config: Images) -> ModelImages:
    if config.normalisation == "unit":
        return images
    if config.normalisation == "symmetric":  # the same bits as the published code
        return 2 * images - 1
    mean, deviation = jnp.asarray(STATISTICS[config.normalisation])
    return (images - mean) / deviation
