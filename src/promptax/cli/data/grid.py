"""A picture of some images of each class of a prepared set."""

from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from promptax.core.errors import UserError
from promptax.data.dataset import Dataset, Part

TILE, GAP, FONT = 64, 4, 14
"""Pixels: the side of an image, the space between two, and the height of a letter."""
ROWS = 50
"""Classes below each other; more of them stand in blocks beside each other."""


def save_grid(dataset: Dataset, path: Path, per_class: int) -> None:
    """Draw training images, a row for each class with its name.

    Raises `UserError` where the file cannot be written.
    """
    font = ImageFont.load_default(FONT)
    label = max(int(font.getlength(name)) for name in dataset.class_names) + 2 * GAP
    step, rows = TILE + GAP, min(len(dataset.class_names), ROWS)
    block, blocks = label + per_class * step, -(-len(dataset.class_names) // ROWS)
    page = Image.new("RGB", (block * blocks, rows * step), "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(dataset.class_names):
        left, top = number // rows * block, number % rows * step
        draw.text((left + GAP, top + TILE // 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(dataset.train[_some(dataset.train, number, per_class)]):
            page.paste(_tile(pixels), (left + label + column * step, top))
    try:
        page.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be written to '{path}': {error}.") from None


def _some(part: Part, number: int, count: int) -> Int[np.ndarray, " some"]:
    """Examples of a class, evenly spread over all of it, so that every group has its share."""
    own = np.flatnonzero(part.labels == number)
    return own[np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)]


def _tile(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    kind = Image.Resampling.NEAREST if image.height < TILE else Image.Resampling.BILINEAR
    return image.resize((TILE, TILE), kind)
