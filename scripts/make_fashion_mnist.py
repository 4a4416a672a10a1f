"""Cut a small balanced Fashion-MNIST out of the IDX files that a Debian package ships.

    apt-get install dataset-fashion-mnist
    python scripts/make_fashion_mnist.py

writes `src/promptax/data/bundled/fashion_mnist.npz`. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "promptax" / "data" / "bundled"
"""Folder of the data that is bundled with the package."""

IDX_MAGIC = b"\x00\x00\x08"
"""First bytes of an IDX file of bytes; the next one is the number of axes."""
OLDEST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip can hold."""
READABLE_FILE = 0o644 << 16
"""The mode of a file, in the upper half of a zip entry's attributes."""

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Config:
    """Make the Fashion-MNIST file of the package."""

    folder: Path = Path("/usr/share/datasets/fashion-mnist")
    """Folder of the four IDX files (`.gz`)."""
    out: Path = BUNDLED / "fashion_mnist.npz"
    """File to write."""
    train_per_class: int = 500
    """Number of training images of each class: the first ones in the file."""
    test_per_class: int = 100
    """Number of test images of each class: the first ones in the file."""


def write_npz(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays as `np.savez_compressed` does, but with a fixed date, so that equal arrays give
    equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=OLDEST_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = READABLE_FILE
            archive.writestr(entry, buffer.getvalue())


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes.

    The header has a magic number, the number of axes (a byte), and the size of each axis (four
    bytes, big endian).
    """
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or not data.startswith(IDX_MAGIC):
        raise ValueError(f"{path} is not an IDX file of bytes")
    axes = data[3]
    shape = np.frombuffer(data, ">u4", count=axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape.tolist())


def first_per_class(labels: NDArray, count: int) -> NDArray[np.bool_]:
    """A mask of the records that are among the first `count` of their class, in file order."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return rank < count


def read_split(folder: Path, name: str, per_class: int) -> tuple[NDArray, NDArray]:
    """Images and labels of the first `per_class` records of each class."""
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    keep = first_per_class(labels, per_class)
    return images[keep], labels[keep].astype(np.int64)


def main(config: Config) -> None:
    train_images, train_labels = read_split(config.folder, "train", config.train_per_class)
    test_images, test_labels = read_split(config.folder, "t10k", config.test_per_class)
    arrays = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "class_names": np.array(CLASS_NAMES),
    }
    write_npz(config.out, arrays)
    print(f"{config.out}: {len(train_images)} + {len(test_images)} images")


if __name__ == "__main__":
    config = tyro.cli(Config)
    try:
        main(config)
    except (OSError, ValueError) as error:
        hint = "is the Debian package dataset-fashion-mnist installed?"
        print(f"error: {error} ({hint})", file=sys.stderr)
        sys.exit(2)
