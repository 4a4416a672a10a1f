"""A picture with some images of each class of a set."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from promptax.core.errors import UserError
from promptax.data.dataset import Dataset, Part

TILE = 64
"""Side of an image, in pixels."""
GAP = 4
"""Pixels between two images."""
FONT_SIZE = 14
ROWS = 50
"""Classes below one another. More classes are in further columns of rows beside them."""


def save_grid(dataset: Dataset, path: Path, per_class: int) -> None:
    """Draw `per_class` training images of each class, a row for each class with its name.

    Raises `UserError` if the file cannot be written.
    """
    font = ImageFont.load_default(FONT_SIZE)
    step = TILE + GAP
    classes = len(dataset.class_names)
    name_width = max(int(font.getlength(name)) for name in dataset.class_names) + 2 * GAP
    row_width = name_width + per_class * step
    rows = min(classes, ROWS)
    page = Image.new("RGB", (row_width * math.ceil(classes / ROWS), rows * step), "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(dataset.class_names):
        left = number // rows * row_width
        top = number % rows * step
        # "lm": the position is that of the left end of the text's middle line.
        draw.text((left + GAP, top + TILE // 2), name, "black", font, anchor="lm")
        images = dataset.train[_examples_of(dataset.train, number, per_class)]
        for column, pixels in enumerate(images):
            page.paste(_tile(pixels), (left + name_width + column * step, top))
    _save(page, path)


def save_image(pixels: UInt8[np.ndarray, "height width channel"], path: Path) -> None:
    """Write an image as it is. Raises `UserError` if the file cannot be written."""
    _save(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), path)


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be written to '{path}': {error}.") from None


def _examples_of(part: Part, class_number: int, count: int) -> Int[np.ndarray, " some"]:
    """At most `count` examples of a class, evenly spread so that every group has its share."""
    own = np.flatnonzero(part.labels == class_number)
    return own[np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)]


def _tile(pixels: UInt8[np.ndarray, "height width channel"]) -> Image.Image:
    is_grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels).convert("RGB")
    # Small images keep their pixels visible.
    enlarges = image.height < TILE
    filter = Image.Resampling.NEAREST if enlarges else Image.Resampling.BILINEAR
    return image.resize((TILE, TILE), filter)
