"""Data sets of the Hugging Face hub: folders of `save_to_disk`, and Parquet files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.core.files import read_json, require_file
from promptax.core.limits import FILE, TEXT
from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, AbstractImages, Listed, Listing, Stored

ROWS_AT_ONCE = 64
"""Rows of a Parquet file that are read together, so that few images are in memory at a time."""


@dataclass(frozen=True)
class HuggingFace(AbstractFormat):
    """A folder written by `DatasetDict.save_to_disk`, or one with Parquet files such as
    `train-00000-of-00001.parquet` in it or in its folder `data`. Needs the extra `huggingface`."""

    image: str | None = None
    """Name of the column of images; None: the first one of type `Image`."""
    label: str | None = None
    """Name of the column of classes; None: the first one of type `ClassLabel`."""
    test_split: str = "test"
    """Name of the split to test on, such as `validation` for ImageNet."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all rows in their order."""
        _pyarrow()  # raises an error that says how to install it
        train_files = _files(path, "train")
        test_files = _files(path, self.test_split)
        features = _features(train_files[0])
        image = self.image or _first(features, "Image", path)
        label = self.label or _first(features, "ClassLabel", path)
        train = _part(train_files, image, label)
        test = _part(test_files, image, label)
        count = 1 + int(max(train.labels.max(), test.labels.max()))  # pyright: ignore[reportAttributeAccessIssue]
        names = tuple(features.get(label, {}).get("names", map(str, range(count))))
        if count > len(names):
            raise UserError(f"'{path}' has label {count - 1}, but {len(names)} class names.")
        return Listing(train, test, names, train_files + test_files)


@dataclass(frozen=True)
class Columns(AbstractImages):
    """Images in a column of structs `{bytes, path}`."""

    files: tuple[Path, ...]
    column: str

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """Read the images. `positions` are without a gap, up to the last one."""
        start = int(positions[0]) if len(positions) else 0
        for file, column in _column(self.files, self.column):
            rows = column.slice(start) if start < len(column) else []
            start = max(start - len(column), 0)  # as a row in the next column
            for row in rows:
                with reading(file):
                    image = row.as_py()["bytes"]
                    if not isinstance(image, bytes):
                        raise ValueError("only the paths of images are in it")
                FILE.check(len(image), f"an image in '{file}'")
                yield image


def _part(files: tuple[Path, ...], image: str, label: str) -> Listed:
    columns = []
    for file, column in _column(files, label):
        # Other types, such as runs of one value, can promise any number of rows.
        if not _pyarrow().types.is_integer(column.type):
            raise UserError(f"column '{label}' of '{file}' should be class numbers from 0.")
        columns.append(np.asarray(column.to_pylist()))
    labels = np.concatenate([np.zeros(0, int), *columns])
    if not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(f"column '{label}' of '{files[0]}' should be class numbers from 0.")
    return Listed(Columns(files, image), labels.astype(np.int32), [""] * len(labels))


def _column(files: tuple[Path, ...], name: str) -> Iterator[tuple[Path, Any]]:
    """Read a column in pieces, each with the file that it comes from."""
    for file in files:
        require_file(file)
        with reading(file):
            for batch in _batches(file, name):
                batch.validate(full=True)
                yield file, batch.column(name)


def _batches(file: Path, column: str) -> Iterator[Any]:
    pyarrow = _pyarrow()
    if file.suffix == ".arrow":
        with pyarrow.memory_map(str(file)) as mapped:
            for batch in pyarrow.ipc.open_stream(mapped):
                yield batch.select([column])
    else:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(ROWS_AT_ONCE, columns=[column])


def _files(path: Path, split: str) -> tuple[Path, ...]:
    """The files of a split, in order."""
    state = path / split / "state.json"
    if state.is_file():
        with reading(state):
            stored = read_json(state)["_data_files"]
            return tuple(path / split / Path(file["filename"]).name for file in stored)
    for folder in (path, path / "data", path / split):
        pattern = "*.parquet" if folder.name == split else f"{split}-*.parquet"
        if files := sorted(folder.glob(pattern)):
            return tuple(files)
    raise UserError(
        f"'{path}' should hold '{split}/state.json' (save_to_disk) or '{split}-*.parquet'."
    )


def _features(file: Path) -> dict[str, Any]:
    """The types of the columns, as Hugging Face writes them beside or into the first file."""
    beside = file.with_name("dataset_info.json")
    with reading(beside if beside.is_file() else file):
        if beside.is_file():
            return read_json(beside)["features"]
        metadata = _pyarrow().parquet.read_schema(file).metadata or {}
        if b"huggingface" not in metadata:
            return {}
        TEXT.check(len(metadata[b"huggingface"]), f"the metadata of '{file}'")
        return json.loads(metadata[b"huggingface"])["info"]["features"]


def _first(features: Mapping[str, Any], kind: str, path: Path) -> str:
    """The first column of a type."""
    with reading(path):
        found = [name for name, value in features.items() if value.get("_type") == kind]
    if not found:
        raise UserError(f"'{path}' names no column of type {kind}: say which column it is.")
    return found[0]


def _pyarrow() -> Any:
    """The package pyarrow, with the submodules that are used here."""
    try:
        import_module("pyarrow.ipc")
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError:
        raise UserError(
            "Hugging Face sets need pyarrow: pip install 'promptax[huggingface]'."
        ) from None
