"""Data sets of other libraries as sources, without importing those libraries."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from promptax.core.errors import UserError
from promptax.data.image import resize
from promptax.data.source import ArraySource

_BYTE = 255


@runtime_checkable
class Items(Protocol):
    """A data set of torchvision, or any other that gives an image and a label by position."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, position: int, /) -> Any:
        """An image and its label."""
        ...


def from_torchvision(items: Items, *, size: int | None = None) -> ArraySource:
    """Read a data set of torchvision, or any other of pairs of an image and a label.

    Everything is read once, into memory: for sets that do not fit, see `promptax data prepare`.
    Leave out random transforms, which would be drawn only once; promptax augments by itself.

    Args:
        items: The data set: `len(items)`, and `items[i]` is an image and a label. An image is a
            Pillow image, a uint8 array `[height, width(, channel)]`, or a tensor of floats from 0
            to 1 `[channel, height, width]` as `ToTensor` makes it.
        size: Side, in pixels, of the square that images are resized to. It is needed if they
            differ in size.

    Returns:
        The source. Its `class_names` are those of the data set (`items.classes`), if it has any.

    Raises:
        UserError: An example is not an image with a label, or images differ in size.
    """
    if not isinstance(items, Items):
        raise UserError(
            f"the data set is a {type(items).__name__}; expected one with a length, whose items "
            "are pairs of an image and a label."
        )
    names = getattr(items, "classes", None)
    return _source(_pairs(items), len(items), size, names)


def from_huggingface(
    dataset: Any, *, image: str = "image", label: str = "label", size: int | None = None
) -> ArraySource:
    """Read a `datasets.Dataset` of Hugging Face, such as one split of `load_dataset(...)`.

    Everything is read once, into memory: for sets that do not fit, see `promptax data prepare`.

    Args:
        dataset: The data set.
        image: Name of the column of images.
        label: Name of the column of class numbers.
        size: Side, in pixels, of the square that images are resized to. It is needed if they
            differ in size.

    Returns:
        The source. Its `class_names` are those of the column of labels, if it has any.

    Raises:
        UserError: There is no such column, or images differ in size.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, dict):
        splits = ", ".join(columns)
        raise UserError(f"choose one of the splits of the data set ({splits}): dataset['train'].")
    if columns is None:
        raise UserError(f"the data set is a {type(dataset).__name__}; expected a datasets.Dataset.")
    for column in (image, label):
        if column not in columns:
            raise UserError(
                f"the data set has no column '{column}': say which of {', '.join(columns)} hold "
                "images and labels, as in from_huggingface(dataset, image='img')."
            )
    names = getattr(dataset.features[label], "names", None)
    rows = ((row[image], row[label]) for row in dataset)
    return _source(rows, len(dataset), size, names)


def _pairs(items: Items) -> Iterator[tuple[Any, Any]]:
    # Not `iter(items)`: a data set of torchvision does not say where it ends.
    for position in range(len(items)):
        item = items[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(
                f"example {position} is a {type(item).__name__}; expected a pair of an image and a "
                "label."
            )
        yield item[0], item[1]


def _source(
    pairs: Iterable[tuple[Any, Any]], count: int, size: int | None, names: Any
) -> ArraySource:
    if not count:
        raise UserError("the data set has no example.")
    images: np.ndarray | None = None
    labels = np.zeros(count, np.int64)
    for number, (image, label) in enumerate(pairs):
        pixels = resize(_pixels(image, number), size)
        if images is None:
            images = np.empty((count, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"example {number} has the shape {pixels.shape}, and the first one "
                f"{images.shape[1:]}: resize all of them with size=..., such as size=256."
            )
        images[number] = pixels
        labels[number] = int(label)
    assert images is not None, "there is at least one example"
    source = ArraySource(images, labels)
    source.class_names = None if names is None else tuple(map(str, names))
    return source


def _pixels(image: Any, number: int) -> UInt8[np.ndarray, "height width channel"]:
    """The pixels of an image of any of the kinds that data sets give."""
    if isinstance(image, Image.Image):
        is_grey = image.mode in ("1", "L")
        array = np.asarray(image.convert("L" if is_grey else "RGB"))
    else:
        array = np.asarray(image)
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.round(_BYTE * array).astype(np.uint8)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)  # a tensor has its channels first
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UserError(
            f"example {number} is a {type(image).__name__} of {array.dtype} {array.shape}; "
            "expected a Pillow image, uint8 [height, width(, channel)], or floats from 0 to 1 "
            "[channel, height, width]. Leave out transforms that normalise: promptax does."
        )
    return array
