"""From raw pixels to the backbone's input, on the device and inside the compiled step."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt8

from promptax.config import Images

RawImages = UInt8[Array, "batch height width channel"]
ModelImages = Float32[Array, "batch size size 3"]


def prepare_train(images: RawImages, config: Images, key: PRNGKeyArray) -> ModelImages:
    """Random resized crop (Szegedy et al., 2015) and flip of each image."""
    crop, flip = jr.split(key)
    if config.crop_area == (1.0, 1.0):
        out = prepare_eval(images, config)
    else:
        boxes = random_boxes(crop, len(images), config)
        # Cropping from the resized image is cropping from the original one, rescaled: one
        # interpolation instead of two.
        out = _finish(
            jax.vmap(lambda image, box: _crop(image, box, config.size))(images, boxes), config
        )
    if not config.flip:
        return out
    mirror = jr.bernoulli(flip, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirror, out[:, :, ::-1], out)


def prepare_eval(images: RawImages, config: Images) -> ModelImages:
    """Resize, aspect ignored, and centre crop."""
    margin = 0.5 * (1 - config.size / (config.resize or config.size))
    if images.shape[1:3] == (config.size, config.size) and margin == 0:
        return _finish(images.astype(jnp.float32), config)
    box = jnp.asarray([margin, margin, 1 - 2 * margin, 1 - 2 * margin])
    return _finish(jax.vmap(lambda image: _crop(image, box, config.size))(images), config)


def random_boxes(key: PRNGKeyArray, count: int, config: Images) -> Float[Array, "count 4"]:
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


def _crop(image: UInt8[Array, "height width channel"], box: Float[Array, "4"], size: int):
    extent = jnp.asarray(image.shape[:2], jnp.float32)
    scale = size / (box[2:] * extent)
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(
        image.astype(jnp.float32), shape, (0, 1), scale, -box[:2] * extent * scale, "linear"
    )


def _finish(images: Float[Array, "batch size size channel"], config: Images) -> ModelImages:
    unit = jnp.broadcast_to(images / 255, (*images.shape[:3], 3))
    return unit if config.value_range == "unit" else 2 * unit - 1
