"""Data sets in NumPy files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptax.core.errors import UserError
from promptax.core.files import map_npy
from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Pixels
from promptax.data.source import ArraySource, read_arrays


@dataclass(frozen=True)
class Arrays(AbstractFormat):
    """One of: a `.npz` file with `train_images`, `train_labels` and the same for `test`; a folder
    with `train.npz` and `test.npz`, each with `images` and `labels`; a folder with
    `train_images.npy`, `train_labels.npy` and the same for `test`.

    Images are uint8 `[examples, height, width]` or `[examples, height, width, 1 or 3]`. The arrays
    `groups` (an integer for each example), `class_names` and `group_names` are optional.
    """

    def list(self, path: Path) -> Listing:
        """List all examples in their order."""
        files = _files(path)
        arrays = _read(files)
        train = _part(arrays, "train", path)
        test = _part(arrays, "test", path)
        labels = np.concatenate([train.labels, test.labels])
        classes = _names(arrays, "class_names", int(labels.max()) + 1, path)
        groups = np.concatenate([part.groups for part in (train, test) if part.groups is not None])
        group_names = _names(arrays, "group_names", int(groups.max(initial=-1)) + 1, path)
        return Listing(train, test, classes, files, group_names)


def _files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    pair = (path / "train.npz", path / "test.npz")
    if all(file.is_file() for file in pair):
        return pair
    found = tuple(sorted(path.glob("*.npy")))
    if not found:
        raise UserError(f"'{path}' should be a .npz file, or hold train.npz and test.npz.")
    return found


def _read(files: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """Read all arrays, by names such as `train_images`."""
    if files[0].suffix == ".npy":
        arrays = {}
        for file in files:
            with reading(file):
                arrays[file.stem] = map_npy(file)
        return arrays
    if len(files) == 1:
        return read_arrays(files[0])
    shared = ("class_names", "group_names")
    return {
        name if name in shared else f"{file.stem}_{name}": array
        for file in files
        for name, array in read_arrays(file).items()
    }


def _part(arrays: Mapping[str, np.ndarray], part: str, path: Path) -> Listed:
    for name in (f"{part}_images", f"{part}_labels"):
        if name not in arrays:
            raise UserError(f"'{path}' should hold an array '{name}', and has none.")
    source = ArraySource(arrays[f"{part}_images"], arrays[f"{part}_labels"], f"'{path}' ({part})")
    groups = arrays.get(f"{part}_groups", np.zeros(len(source.labels), np.int32))
    if groups.shape != source.labels.shape or groups.dtype.kind not in "iu" or groups.min() < 0:
        raise UserError(f"'{path}': {part} groups should be integers from 0, one an image.")
    return Listed(Pixels(source.images), source.labels, [""] * len(groups), groups)


def _names(arrays: Mapping[str, np.ndarray], kind: str, count: int, path: Path) -> tuple[str, ...]:
    """The names of classes or groups: those in the file, or their numbers."""
    if kind not in arrays:
        if kind == "group_names" and count == 1:
            return ()  # a single group is no division into groups
        return tuple(map(str, range(count)))
    names = tuple(str(name) for name in np.ravel(arrays[kind]))
    if len(names) < count:
        raise UserError(f"'{path}' has {len(names)} {kind}, but needs {count}.")
    return names
