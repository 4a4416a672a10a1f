"""Data sets in ArrayRecord files, as TensorFlow Datasets prepares them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.core.files import open_file, read_json, read_text
from promptax.core.limits import DIRECTORY, FILE
from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, AbstractImages, Listed, Listing, Stored
from promptax.data.formats.riegeli import chunks
from promptax.data.formats.wire import Value, parse_example

MOST_AT_ONCE = 64
"""Records that are read together, so that few of them are in memory at a time."""
BYTES_PER_RECORD = 8
"""Of the position of a record in its chunk, which the reader keeps."""


@dataclass(frozen=True)
class ArrayRecords(AbstractFormat):
    """A folder with `dataset_info.json`, `features.json` and files such as
    `cifar10-train.array_record-00000-of-00001`, or a folder with one such folder below."""

    image: str = "image"
    """Name of the feature with the image: PNG or JPEG, or raw bytes."""
    label: str = "label"
    """Name of the feature with the class."""
    test_split: str = "test"
    """Name of the split to test on, such as `validation` for ImageNet."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all records in their order."""
        folder = _folder(path)
        features = _features(folder)
        for name in (self.image, self.label):
            if name not in features:
                known = ", ".join(features)
                raise UserError(f"'{folder}' has no feature '{name}'. It has: {known}.")
        train = self._part(folder, "train", features)
        test = self._part(folder, self.test_split, features)
        classes = _class_names(folder, self.label, features)
        if max(*train.labels, *test.labels) >= len(classes):
            raise UserError(f"'{folder}' has labels beyond its {len(classes)} classes.")
        return Listing(train, test, classes, tuple(sorted(folder.iterdir())))

    def _part(self, folder: Path, split: str, features: Mapping[str, Any]) -> Listed:
        images = Records(_shards(folder, split), self.image, _raw_shape(features[self.image]))
        with reading(folder):
            labels = []
            for record in images.records():
                (label,) = record[self.label]
                labels.append(int(label))
            if not labels or min(labels) < 0:
                raise ValueError(f"split '{split}' is empty or has labels below 0")
        names = [f"{split}/{n}" for n in range(len(labels))]
        return Listed(images, np.asarray(labels, np.int32), names)


@dataclass(frozen=True)
class Records(AbstractImages):
    """The images in records of ArrayRecord files."""

    files: tuple[Path, ...]
    feature: str
    """Name of the feature with the image."""
    raw_shape: tuple[int, ...] | None
    """Shape of images that are stored as raw bytes; None if they are encoded."""

    def records(self, start: int = 0) -> Iterator[dict[str, Value]]:
        """Parse the records from number `start` on."""
        for file in self.files:
            with reading(file):
                at_once = _records_at_once(file)
                reader = ArrayRecordReader(str(file))
                count = reader.num_records()
                if not (reader.ok() and count):
                    raise EOFError("no records")
                for first in range(start, count, at_once):
                    last = min(first + at_once, count)
                    block = reader.read(list(range(first, last)))
                    yield from map(parse_example, block)
                start = max(start - count, 0)  # as a record number in the next file

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """Read the images. `positions` are without a gap, up to the last one."""
        start = int(positions[0]) if len(positions) else 0
        for _, record in zip(positions, self.records(start), strict=True):
            with reading(self.files[0]):
                image = self._image(record)
            yield image

    def _image(self, record: Mapping[str, Value]) -> Stored:
        value = record[self.feature]
        if self.raw_shape is None:
            (image,) = value
            if not isinstance(image, bytes):
                raise ValueError("an image that is no file")
            return image
        # Raw pixels are stored as strings of bytes, or as a list with an integer for each byte.
        whole = b"".join(v for v in value if isinstance(v, bytes)) or bytes(value)  # pyright: ignore[reportArgumentType]
        return np.frombuffer(whole, np.uint8).reshape(self.raw_shape)


def _records_at_once(file: Path) -> int:
    """How many records fit into memory together, by the sizes of the chunks that they are in.

    Raises `UserError` for a chunk that does not fit.
    """
    largest = 1
    with open_file(file) as opened:
        for chunk in chunks(opened):
            FILE.check(chunk.size, f"a chunk of '{file}'")
            DIRECTORY.check(BYTES_PER_RECORD * chunk.records, f"the list of records in '{file}'")
            largest = max(largest, chunk.size)
    return max(1, min(MOST_AT_ONCE, FILE.value // largest))


def _folder(path: Path) -> Path:
    """The folder of the one set at `path`: that folder, or one or two levels below it."""
    if (path / "dataset_info.json").is_file():
        return path
    found = sorted(path.glob("*/dataset_info.json"))
    found += sorted(path.glob("*/*/dataset_info.json"))
    if len(found) != 1:
        raise UserError(
            f"'{path}' should hold one set of TensorFlow Datasets (dataset_info.json), "
            f"and holds {len(found)}."
        )
    return found[0].parent


def _features(folder: Path) -> dict[str, Any]:
    with reading(folder / "features.json"):
        return read_json(folder / "features.json")["featuresDict"]["features"]


def _shards(folder: Path, split: str) -> tuple[Path, ...]:
    files = sorted(folder.glob(f"*-{split}.array_record-?????-of-?????"))
    if not files:
        raise UserError(f"'{folder}' has no ArrayRecord files of split '{split}'.")
    expected = int(files[0].name[-5:])
    if len(files) != expected:
        raise UserError(f"'{folder}' has {len(files)} of the {expected} files of split '{split}'.")
    return tuple(files)


def _raw_shape(feature: Mapping[str, Any]) -> tuple[int, ...] | None:
    with reading(Path("features.json")):
        if "tensor" not in feature:
            return None
        return tuple(int(size) for size in feature["tensor"]["shape"]["dimensions"])


def _class_names(folder: Path, label: str, features: Mapping[str, Any]) -> tuple[str, ...]:
    file = folder / f"{label}.labels.txt"
    with reading(file):
        if file.is_file():
            return tuple(read_text(file).splitlines())
        return tuple(str(n) for n in range(int(features[label]["classLabel"]["numClasses"])))
