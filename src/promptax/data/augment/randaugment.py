"""RandAugment (Cubuk et al., NeurIPS 2020 workshops, arXiv 1909.13719)."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from promptax.data.augment.color import LUMA, UnitImage, blend, grey

OPERATIONS = (
    *("identity", "autocontrast", "equalize", "posterize", "solarize", "brightness", "contrast"),
    *("color", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)
"""The 14 of the paper (section 3); the first 7 are tables of levels, the last 5 are warps."""
_TABLES = 7
_COLOR, _SHARPNESS, _FIRST_WARP = (OPERATIONS.index(n) for n in ("color", "sharpness", "shear_x"))
FILL = 128 / 255
"""The grey that comes in from outside the image, as published."""


def rand_augment(
    image: UnitImage, key: PRNGKeyArray, *, operations: int, magnitude: float
) -> UnitImage:
    """Put an image in [0, 1] through random operations, one after another.

    Each is uniform among `OPERATIONS`; `magnitude` goes from 0 to 10, over the ranges of
    AutoAugment (Cubuk et al., 2019, table 6), with a random sign where there are two directions.
    """

    def step(image: UnitImage, key: PRNGKeyArray) -> tuple[UnitImage, None]:
        which, sign = jr.split(key)
        number = jr.randint(which, (), 0, len(OPERATIONS))
        strength = jr.rademacher(sign, (), jnp.float32) * magnitude / 10
        return operate(image, number, strength), None

    # A scan also keeps XLA from fusing one operation's gathers into those of the next.
    return jax.lax.scan(step, image, jr.split(key, operations))[0]


def operate(image: UnitImage, number: Int[Array, ""], strength: Float[Array, ""]) -> UnitImage:
    """Apply `OPERATIONS[number]` at a strength from -1 to 1.

    Over a batch every branch is computed, so there are only three: a table of 256 levels, a blend
    and a warp. Each operation is one of them, and leaves the other two at identity.
    """
    image = apply_table(image, _tables(image, strength)[jnp.where(number < _TABLES, number, 0)])
    factor = 1 + 0.9 * strength
    color, sharpness = number == _COLOR, number == _SHARPNESS
    blended = blend(jnp.where(color, grey(image), _smooth(image)), image, factor)
    image = jnp.where(color | sharpness, blended, image)
    return warp(image, _matrix(number, strength, *image.shape[:2]))


def apply_table(image: UnitImage, table: Float[Array, "3 256"]) -> UnitImage:
    """Look up the nearest of 256 levels of each channel."""
    return table.reshape(-1)[_levels(image)]


def histogram(image: UnitImage) -> Int[Array, "3 256"]:
    """How often each of 256 levels occurs in each channel."""
    counts = jnp.zeros(3 * 256, jnp.int32).at[_levels(image).reshape(-1)].add(1)
    return counts.reshape(3, 256)


def warp(image: UnitImage, matrix: Float[Array, "2 3"]) -> UnitImage:
    """Take each pixel (x, y) from `matrix @ (x, y, 1)`, between four pixels (bilinear).

    Coordinates are in pixels from the top left corner of the image, as in Pillow. Four gathers of
    whole pixels are five times as fast on a CPU as `jax.scipy.ndimage.map_coordinates`.
    """
    height, width = image.shape[:2]
    y, x = jnp.mgrid[:height, :width] + 0.5
    at_x, at_y = (row[0] * x + row[1] * y + row[2] for row in matrix)
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    left, top = jnp.floor(at_x - 0.5), jnp.floor(at_y - 0.5)
    right_share, lower_share = (at_x - 0.5 - left)[..., None], (at_y - 0.5 - top)[..., None]
    pixels = image.reshape(-1, 3)
    index = lambda at, size: jnp.clip(at, 0, size - 1).astype(jnp.int32)
    take = lambda y, x: pixels[index(y, height) * width + index(x, width)]
    between = lambda y: take(y, left) * (1 - right_share) + take(y, left + 1) * right_share
    out = between(top) * (1 - lower_share) + between(top + 1) * lower_share
    return jnp.where(inside[..., None], jnp.clip(out, 0, 1), FILL)  # the weights are rounded


def _levels(image: UnitImage) -> Int[Array, "height width 3"]:
    """The index of each value in a flattened table of three channels."""
    return jnp.round(255 * image).astype(jnp.int32) + 256 * jnp.arange(3)


def _tables(image: UnitImage, strength: Float[Array, ""]) -> Float[Array, "7 3 256"]:
    """What the first operations make of each level of each channel."""
    counts, level = histogram(image), jnp.broadcast_to(jnp.arange(256.0), (3, 256))
    bits = jnp.round(4 * jnp.abs(strength))
    step = 2**bits
    factor = 1 + 0.9 * strength
    mean = (jnp.asarray(LUMA) * (counts * level).sum(1)).sum() / counts[0].sum()
    tables = (
        level,
        _autocontrast(counts, level),
        _equalize(counts),
        jnp.floor(level / step) * step,
        jnp.where(level < 256 * (1 - jnp.abs(strength)), level, 255 - level),
        factor * level,
        mean + factor * (level - mean),
    )
    return jnp.clip(jnp.stack(tables) / 255, 0, 1)


def _autocontrast(
    counts: Int[Array, "3 256"], level: Float[Array, "3 256"]
) -> Float[Array, "3 256"]:
    """Stretch each channel to the whole range; one of a single level stays."""
    low = jnp.argmax(counts > 0, axis=1, keepdims=True)
    high = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    return jnp.where(high > low, (level - low) * 255 / jnp.maximum(high - low, 1), level)


def _equalize(counts: Int[Array, "3 256"]) -> Float[Array, "3 256"]:
    """Pillow's integer rule: all levels but the last that occurs share the range evenly."""
    last = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, last, axis=1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.float32)


def _smooth(image: UnitImage) -> UnitImage:
    """Pillow's SMOOTH: weights 1 around 5, of a sum of 13; the border stays."""
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _matrix(
    number: Int[Array, ""], strength: Float[Array, ""], height: int, width: int
) -> Float[Array, "2 3"]:
    """Where a warp takes its pixels from; the identity for the other operations."""
    # A translation goes up to 150 of the 331 pixels that AutoAugment was searched with.
    shear, shift, angle = 0.3 * strength, 150 / 331 * strength, jnp.pi / 6 * strength
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    centre = jnp.asarray([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    away = jnp.asarray([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    rotate = centre @ jnp.asarray([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ away
    identity = jnp.eye(3)[:2]
    matrices = (
        identity,
        identity.at[0, 1].set(shear),
        identity.at[1, 0].set(shear),
        identity.at[0, 2].set(shift * width),
        identity.at[1, 2].set(shift * height),
        rotate[:2],
    )
    return jnp.stack(matrices)[jnp.maximum(number - _FIRST_WARP + 1, 0)]
