"""Data sets of other libraries as sources."""

import numpy as np
import pytest
from PIL import Image

from promptax import data
from promptax.core.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 8, 6, 3), np.uint8)
LABELS = np.arange(12) % 4


class Items:
    """Like a data set of torchvision: positions beyond the end do not end an iteration."""

    classes = ("cat", "dog", "cow", "hen")

    def __init__(self, convert):
        self.convert = convert

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, position):
        return self.convert(IMAGES[position % len(IMAGES)]), int(LABELS[position % len(IMAGES)])


class Tensor:
    """Like a tensor of PyTorch: NumPy asks it for an array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


TO_TENSOR = lambda image: Tensor(np.moveaxis(image.astype(np.float32) / 255, 2, 0))


@pytest.mark.parametrize("convert", [Image.fromarray, np.asarray, TO_TENSOR])
def test_pixels_labels_and_names_are_those_of_the_data_set(convert):
    source = data.from_torchvision(Items(convert))
    assert np.array_equal(source[np.arange(12)], IMAGES)
    assert np.array_equal(source.labels, LABELS)
    stream = data.class_incremental(source, source, num_tasks=2)
    assert stream.class_names == Items.classes


def test_grey_images_have_one_channel_and_are_resized():
    grey = lambda image: Image.fromarray(image).convert("L")
    source = data.from_torchvision(Items(grey), size=4)
    assert source.images.shape == (12, 4, 4, 1)
    wanted = np.asarray(grey(IMAGES[3]).resize((4, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(source.images[3, ..., 0], wanted)


class Label:
    names = ("cat", "dog", "cow", "hen")


class Dataset:
    """Like a `datasets.Dataset`."""

    column_names = ("img", "label")
    features = {"img": None, "label": Label()}  # noqa: RUF012

    def __len__(self):
        return len(IMAGES)

    def __iter__(self):
        for image, label in zip(IMAGES, LABELS, strict=True):
            yield {"img": Image.fromarray(image), "label": label}


def test_columns_of_hugging_face():
    source = data.from_huggingface(Dataset(), image="img")
    assert np.array_equal(source.images, IMAGES)
    assert source.class_names == Label.names
    with pytest.raises(UserError, match="no column 'image': say which of img, label"):
        data.from_huggingface(Dataset())
    several = type("DatasetDict", (), {"column_names": {"train": ["img"], "test": ["img"]}})()
    with pytest.raises(UserError, match=r"one of the splits .*train, test"):
        data.from_huggingface(several)
    with pytest.raises(UserError, match=r"a list; expected a datasets\.Dataset"):
        data.from_huggingface([])


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([(IMAGES[0], 0), (IMAGES[1][:4], 1)], r"example 1 has the shape \(4, 6, 3\).*size="),
        ([IMAGES[0]], "example 0 is a ndarray; expected a pair"),
        ([(IMAGES[0] / 100, 0)], "example 0 is a ndarray of float64"),
        ([(IMAGES[0], -1)], "class numbers from 0"),
        ([], "no example"),
        (3, "a int; expected one with a length"),
    ],
)
def test_what_does_not_fit_is_named(items, words):
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UserError, match=words):
            data.from_torchvision(items)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
