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
"""The 14 of the paper (section 3).

The first seven are tables of levels, the next two blends, and the last five warps.
"""
_COLOR = OPERATIONS.index("color")
_SHARPNESS = OPERATIONS.index("sharpness")
_FIRST_WARP = OPERATIONS.index("shear_x")
_TABLES = _COLOR
"""Number of operations that are tables of levels."""
LEVELS = 256
"""Levels of a channel of an 8-bit image."""
HIGHEST = LEVELS - 1
FILL = 128 / HIGHEST
"""The grey that comes in from outside the image, as published."""

# Ranges of AutoAugment (Cubuk et al., 2019, table 6) at full magnitude.
LARGEST_MAGNITUDE = 10
FACTOR_RANGE = 0.9
"""Colour, contrast, brightness and sharpness: factors from 0.1 to 1.9."""
POSTERIZED_BITS = 4
"""Bits that posterizing takes from a level."""
SHEAR = 0.3
"""Pixels across for each pixel down, or the reverse."""
TRANSLATION = 150 / 331
"""As a share of the side: 150 of the 331 pixels that AutoAugment was searched with."""
ROTATION = jnp.pi / 6
"""Radians."""


def rand_augment(
    image: UnitImage, key: PRNGKeyArray, *, operations: int, magnitude: float
) -> UnitImage:
    """Apply random operations to an image, one after another.

    Args:
        image: An RGB image in [0, 1].
        key: For the operations and their signs.
        operations: How many to apply. Each is uniform among `OPERATIONS`.
        magnitude: From 0 to 10, over the ranges of AutoAugment. The sign is random for operations
            that have two directions.

    Returns:
        The image, in [0, 1].
    """

    def step(image: UnitImage, key: PRNGKeyArray) -> tuple[UnitImage, None]:
        operation_key, sign_key = jr.split(key)
        number = jr.randint(operation_key, (), 0, len(OPERATIONS))
        strength = jr.rademacher(sign_key, (), jnp.float32) * magnitude / LARGEST_MAGNITUDE
        return operate(image, number, strength), None

    # A scan also keeps XLA from fusing one operation's gathers into those of the next.
    return jax.lax.scan(step, image, jr.split(key, operations))[0]


def operate(image: UnitImage, number: Int[Array, ""], strength: Float[Array, ""]) -> UnitImage:
    """Apply `OPERATIONS[number]` at a strength from -1 to 1.

    Each operation is a table of 256 levels, a blend or a warp. All three are computed, and those
    that are not asked for are the identity: mapped over a batch, a switch with a branch for each
    operation would compute all 14.
    """
    table = jnp.where(number < _TABLES, number, 0)  # the first one is the identity
    image = apply_table(image, _tables(image, strength)[table])
    factor = 1 + FACTOR_RANGE * strength
    is_color = number == _COLOR
    is_sharpness = number == _SHARPNESS
    blended = blend(jnp.where(is_color, grey(image), _smooth(image)), image, factor)
    image = jnp.where(is_color | is_sharpness, blended, image)
    return warp(image, _matrix(number, strength, *image.shape[:2]))


def apply_table(image: UnitImage, table: Float[Array, "3 256"]) -> UnitImage:
    """Replace the nearest of 256 levels of each channel by its entry in a table."""
    return table.reshape(-1)[_levels(image)]


def histogram(image: UnitImage) -> Int[Array, "3 256"]:
    """The number of pixels at each of 256 levels, for each channel."""
    counts = jnp.zeros(3 * LEVELS, jnp.int32).at[_levels(image).reshape(-1)].add(1)
    return counts.reshape(3, LEVELS)


def warp(image: UnitImage, matrix: Float[Array, "2 3"]) -> UnitImage:
    """Give each pixel (x, y) the colour of the image at `matrix @ (x, y, 1)` (bilinear).

    Coordinates are in pixels from the top left corner of the image, as in Pillow. Positions
    outside of the image are grey (`FILL`).
    """
    height, width = image.shape[:2]
    y, x = jnp.mgrid[:height, :width] + 0.5
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    left = jnp.floor(source_x - 0.5)
    top = jnp.floor(source_y - 0.5)
    right_share = (source_x - 0.5 - left)[..., None]
    lower_share = (source_y - 0.5 - top)[..., None]
    # Four gathers of whole pixels are five times as fast on a CPU as
    # `jax.scipy.ndimage.map_coordinates`.
    pixels = image.reshape(-1, 3)
    index = lambda position, size: jnp.clip(position, 0, size - 1).astype(jnp.int32)
    take = lambda y, x: pixels[index(y, height) * width + index(x, width)]
    row = lambda y: take(y, left) * (1 - right_share) + take(y, left + 1) * right_share
    out = row(top) * (1 - lower_share) + row(top + 1) * lower_share
    # Clipped, because rounded weights can leave [0, 1] by a little.
    return jnp.where(is_inside[..., None], jnp.clip(out, 0, 1), FILL)


def _levels(image: UnitImage) -> Int[Array, "height width 3"]:
    """The index of each value in a flattened table of three channels."""
    return jnp.round(HIGHEST * image).astype(jnp.int32) + LEVELS * jnp.arange(3)


def _tables(image: UnitImage, strength: Float[Array, ""]) -> Float[Array, "7 3 256"]:
    """The tables of the first seven operations: a value for each level of each channel."""
    counts = histogram(image)
    level = jnp.broadcast_to(jnp.arange(float(LEVELS)), (3, LEVELS))
    bits = jnp.round(POSTERIZED_BITS * jnp.abs(strength))
    step = 2**bits
    factor = 1 + FACTOR_RANGE * strength
    mean = (jnp.asarray(LUMA) * (counts * level).sum(1)).sum() / counts[0].sum()
    tables = {
        "identity": level,
        "autocontrast": _autocontrast(counts, level),
        "equalize": _equalize(counts),
        "posterize": jnp.floor(level / step) * step,
        "solarize": jnp.where(level < LEVELS * (1 - jnp.abs(strength)), level, HIGHEST - level),
        "brightness": factor * level,
        "contrast": mean + factor * (level - mean),
    }
    in_order = [tables[name] for name in OPERATIONS[:_TABLES]]
    return jnp.clip(jnp.stack(in_order) / HIGHEST, 0, 1)


def _autocontrast(
    counts: Int[Array, "3 256"], level: Float[Array, "3 256"]
) -> Float[Array, "3 256"]:
    """Stretch each channel to the whole range; a channel of a single level stays as it is."""
    low = jnp.argmax(counts > 0, axis=1, keepdims=True)
    high = HIGHEST - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    return jnp.where(high > low, (level - low) * HIGHEST / jnp.maximum(high - low, 1), level)


def _equalize(counts: Int[Array, "3 256"]) -> Float[Array, "3 256"]:
    """Spread the levels so that each range of them has equally many pixels.

    The rule is Pillow's, in integers; it leaves out the pixels of the highest level that occurs.
    """
    last = HIGHEST - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    others = counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, last, axis=1)
    step = others // HIGHEST
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), HIGHEST)
    return jnp.where(step > 0, table, jnp.arange(LEVELS)).astype(jnp.float32)


def _smooth(image: UnitImage) -> UnitImage:
    """Pillow's filter SMOOTH: a weight of 5 for a pixel and of 1 for each of its 8 neighbours.

    Pixels at the border stay as they are.
    """
    rows = image[:-2] + image[1:-1] + image[2:]
    # The sums of three rows and three columns hold the pixel itself once already.
    inner = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _matrix(
    number: Int[Array, ""], strength: Float[Array, ""], height: int, width: int
) -> Float[Array, "2 3"]:
    """The matrix, for `warp`, of operation `number` at a strength from -1 to 1.

    It is the identity for operations that are not warps. `height` and `width` are the image's.
    """
    shear = SHEAR * strength
    shift = TRANSLATION * strength
    angle = ROTATION * strength
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    centre = jnp.asarray([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    away = jnp.asarray([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    rotate = centre @ jnp.asarray([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ away
    identity = jnp.eye(3)[:2]
    warps = {
        "shear_x": identity.at[0, 1].set(shear),
        "shear_y": identity.at[1, 0].set(shear),
        "translate_x": identity.at[0, 2].set(shift * width),
        "translate_y": identity.at[1, 2].set(shift * height),
        "rotate": rotate[:2],
    }
    in_order = [warps[name] for name in OPERATIONS[_FIRST_WARP:]]
    return jnp.stack([identity, *in_order])[jnp.maximum(number - _FIRST_WARP + 1, 0)]
