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
    """Prepare images for evaluation: resize, and crop the centre."""
    return _normalize(_unit(_centre_crop(images, config)), config)


def random_crops(
    key: PRNGKeyArray, count: int, config: Images, *, stretch: float = 1.0
) -> Float[Array, "count 4"]:
    """Draw random crops.

    The area is uniform and the aspect (width over height) log-uniform, in the ranges of `config`.
    A crop that does not fit is drawn again `config.crop_redraws` times; if none fits, the side
    that is longer than the image is cut to it. Corners and sides are not rounded to whole pixels
    of the image, as torchvision's are.

    Args:
        key: For areas, aspects and positions.
        count: Number of crops.
        config: The ranges.
        stretch: Height of the image over its width if the aspect is one of pixels; 1 if it is one
            of the image stretched to a square.

    Returns:
        `top, left, height, width` of each crop, in shares of the image.
    """
    area_key, aspect_key, position_key = jr.split(key, 3)
    smallest, largest = config.crop_area
    # Without redraws, the shape (and so every number drawn) is that of a single attempt.
    attempts = (count,) if config.crop_redraws == 0 else (count, config.crop_redraws + 1)
    area = jr.uniform(area_key, attempts, minval=smallest, maxval=largest)
    low, high = jnp.log(jnp.asarray(config.crop_aspect))
    aspect = stretch * jnp.exp(jr.uniform(aspect_key, attempts, minval=low, maxval=high))
    height = jnp.sqrt(area / aspect)
    width = jnp.sqrt(area * aspect)
    if config.crop_redraws > 0:
        # `argmax` gives the first that fits, and attempt 0 if none does.
        chosen = ((height <= 1) & (width <= 1)).argmax(1)
        height = height[jnp.arange(count), chosen]
        width = width[jnp.arange(count), chosen]
    height = jnp.minimum(height, 1)
    width = jnp.minimum(width, 1)
    top, left = jr.uniform(position_key, (2, count)) * (1 - jnp.stack([height, width]))
    return jnp.stack([top, left, height, width], axis=1)


def _random_crop(
    images: RawImages, config: Images, key: PRNGKeyArray
) -> Float[Array, "batch size size channel"]:
    if config.crop_area == (1.0, 1.0):
        return _centre_crop(images, config)
    height, width = images.shape[1:3]
    stretch = height / width if config.keep_aspect else 1.0
    crops = random_crops(key, len(images), config, stretch=stretch)
    # A crop of the resized image is a crop of the original one at another scale, which needs one
    # interpolation instead of two.
    return jax.vmap(lambda image, crop: _crop(image, crop, config))(images, crops)


def _centre_crop(images: RawImages, config: Images) -> Float[Array, "batch size size channel"]:
    height, width = images.shape[1:3]
    side = config.resize or config.size
    if (height, width) == (config.size, config.size) and side == config.size:
        return images.astype(jnp.float32)
    if config.keep_aspect:
        window = _window_of_shorter_side(height, width, side, config.size)
    else:
        margin = 0.5 * (1 - config.size / side)
        window = (margin, margin, 1 - 2 * margin, 1 - 2 * margin)
    crop = jnp.asarray(window)
    return jax.vmap(lambda image: _crop(image, crop, config))(images)


def _window_of_shorter_side(
    height: int, width: int, side: int, size: int
) -> tuple[float, float, float, float]:
    """The centre square, once the shorter side is resized: `top, left, height, width` in shares.

    Lengths are rounded as torchvision's `Resize` and `CenterCrop` do.

    Args:
        height, width: Of the image, in pixels.
        side: Of the image after resizing, its shorter one.
        size: Of the square.
    """
    shorter = min(height, width)
    # The longer side is rounded down to whole pixels, and the corner to the nearest ones.
    new_height = side * height // shorter
    new_width = side * width // shorter
    top = round((new_height - size) / 2)
    left = round((new_width - size) / 2)
    return top / new_height, left / new_width, size / new_height, size / new_width


def _crop(
    image: UInt8[Array, "height width channel"], crop: Float[Array, "4"], config: Images
) -> Float[Array, "size size channel"]:
    """Resize a crop, as `random_crops` describes it, to a square of 0 to 255."""
    corner = crop[:2]
    share = crop[2:]
    extent = jnp.asarray(image.shape[:2], jnp.float32)
    scale = config.size / (share * extent)
    translation = -corner * extent * scale
    pixels = image.astype(jnp.float32)
    if config.interpolation == "bilinear":
        return jax.image.scale_and_translate(
            pixels,
            shape=(config.size, config.size, image.shape[-1]),
            spatial_dims=(0, 1),
            scale=scale,
            translation=translation,
            method="linear",
            antialias=config.antialias,
        )
    # The cubic kernel overshoots at edges. Pillow cuts that off after each of its passes, of which
    # the one along the width comes first.
    for axis in (1, 0):
        shape = list(pixels.shape)
        shape[axis] = config.size
        resized = jax.image.scale_and_translate(
            pixels,
            shape=shape,
            spatial_dims=(axis,),
            scale=scale[axis, None],
            translation=translation[axis, None],
            method="cubic",
            antialias=config.antialias,
        )
        pixels = jnp.clip(resized, 0, 255)
    return pixels


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
