"""Sources of examples: random access to images and labels."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from promptax.core.described import Described, Facts
from promptax.core.errors import UserError
from promptax.core.files import read_npz


@runtime_checkable
class Source(Protocol):
    """Labels in memory, and images by their positions.

    Images are read a batch at a time, so that no Python code runs for each example.
    """

    @property
    def labels(self) -> Int[np.ndarray, " examples"]:
        """The class number of every example."""
        ...

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        """The images at the given positions."""
        ...


class ArraySource(Described):
    """A source of images that are in memory, or in a memory-mapped array."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str = "the data"):
        """Check and wrap the arrays.

        Args:
            images: Uint8, `[examples, height, width]` (grey) or `[examples, height, width,
                channel]` with 1 or 3 channels.
            labels: A class number, an integer from 0 on, for each image.
            name: What errors call the data, such as its file.

        Raises:
            UserError: For other types, shapes or values.
        """
        _check(np.asarray(images), np.asarray(labels), name)
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = np.asarray(labels).astype(np.int32)
        self.class_names: tuple[str, ...] | None = None
        """By class number, if the data came with names."""

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        return self.images[index]

    def _facts(self) -> Facts:
        yield from source_facts(self.images, self.labels)


def source_facts(images: np.ndarray, labels: np.ndarray) -> Facts:
    """The lines of a source's representation: sizes, and never a pixel."""
    yield "images", f"{len(labels):,}"
    yield "image", " x ".join(map(str, images.shape[1:]))
    yield "classes", f"{len(np.unique(labels))}"


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file. Raises `UserError` if it is missing or cannot be read."""
    return read_npz(Path(path), "data file")


def _check(images: np.ndarray, labels: np.ndarray, name: str) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{name}: images should be uint8 [examples, height, width(, channel)], "
            f"got {images.dtype} {images.shape}."
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise UserError(f"{name}: images should have 1 or 3 channels, got {images.shape[-1]}.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{name}: labels should be {len(images)} integers, got {labels.dtype} {labels.shape}."
        )
    if not images.size:
        raise UserError(f"{name}: there are no images.")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        found = f"{labels.min()} to {labels.max()}"
        raise UserError(f"{name}: labels should be class numbers from 0, got {found}.")
