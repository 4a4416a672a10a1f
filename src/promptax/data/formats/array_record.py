"""Sets that TensorFlow Datasets has prepared as ArrayRecord files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.core.files import read_json
from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, AbstractImages, Listed, Listing, Stored
from promptax.data.formats.wire import Value, parse_example

AT_ONCE = 64
"""Records read together."""


@dataclass(frozen=True)
class ArrayRecords(AbstractFormat):
    """A folder with `dataset_info.json`, `features.json` and files such as
    `cifar10-train.array_record-00000-of-00001`, or a folder with one such folder below."""

    image: str = "image"
    """The feature that is the image: PNG or JPEG, or raw bytes."""
    label: str = "label"
    """The feature that is the class."""
    test_split: str = "test"
    """The split to test on, such as `validation` for ImageNet."""
    size = 256

    def list(self, path: Path) -> Listing:
        """All records in their order."""
        folder = _folder(path)
        features = _features(folder)
        for name in (self.image, self.label):
            if name not in features:
                known = ", ".join(features)
                raise UserError(f"'{folder}' has no feature '{name}'. It has: {known}.")
        train, test = (self._part(folder, split, features) for split in ("train", self.test_split))
        classes = _class_names(folder, self.label, features)
        if max(*train.labels, *test.labels) >= len(classes):
            raise UserError(f"'{folder}' has labels beyond its {len(classes)} classes.")
        return Listing(train, test, classes, tuple(sorted(folder.iterdir())))

    def _part(self, folder: Path, split: str, features: Mapping[str, Any]) -> Listed:
        images = Records(_shards(folder, split), self.image, _raw_shape(features[self.image]))
        with reading(folder):
            labels = [_one(record, self.label) for record in images.records()]
            if not labels or min(labels) < 0:
                raise ValueError(f"split '{split}' is empty or has labels below 0")
        names = [f"{split}/{n}" for n in range(len(labels))]
        return Listed(images, np.asarray(labels, np.int32), names)


@dataclass(frozen=True)
class Records(AbstractImages):
    """The images of records."""

    files: tuple[Path, ...]
    feature: str
    raw_shape: tuple[int, ...] | None
    """Of images that are not encoded."""

    def records(self, start: int = 0) -> Iterator[dict[str, Value]]:
        """The parsed records, from one of them on."""
        for file in self.files:
            with reading(file):
                reader = ArrayRecordReader(str(file))
                count = reader.num_records()
                if not (reader.ok() and count):
                    raise EOFError("no records")
                for at in range(start, count, AT_ONCE):
                    block = reader.read(list(range(at, min(at + AT_ONCE, count))))
                    yield from map(parse_example, block)
                start = max(start - count, 0)

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """One after another; positions are the last ones, without a gap."""
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
        whole = b"".join(v for v in value if isinstance(v, bytes)) or bytes(value)  # pyright: ignore[reportArgumentType]
        return np.frombuffer(whole, np.uint8).reshape(self.raw_shape)


def _folder(path: Path) -> Path:
    found = [path / "dataset_info.json"] if (path / "dataset_info.json").is_file() else []
    found = found or sorted(path.glob("*/dataset_info.json")) + sorted(
        path.glob("*/*/dataset_info.json")
    )
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


def _one(record: Mapping[str, Sequence[Any]], label: str) -> int:
    (value,) = record[label]
    return int(value)


def _class_names(folder: Path, label: str, features: Mapping[str, Any]) -> tuple[str, ...]:
    file = folder / f"{label}.labels.txt"
    with reading(file):
        if file.is_file():
            return tuple(file.read_text("utf-8").splitlines())
        return tuple(str(n) for n in range(int(features[label]["classLabel"]["numClasses"])))
