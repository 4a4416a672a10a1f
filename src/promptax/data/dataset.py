"""Prepared sets: images decoded once, in memory-mapped files.

A prepared set is a folder with `meta.json` and, for `train` and `test` each, `images.npy`
(uint8), `labels.npy` and `groups.npy` (int32) and `names.txt`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from promptax.core.errors import UserError
from promptax.core.files import map_npy, read_json, sha256_of

VERSION = 1
"""Of the layout of a prepared set."""

PARTS = ("train", "test")
ARRAYS = ("images", "labels", "groups")


@dataclass(frozen=True, eq=False)
class Part:
    """The training or the test examples of a prepared set; a `Source`."""

    images: UInt8[np.ndarray, "examples height width channel"]
    """Memory-mapped and read-only."""
    labels: Int32[np.ndarray, " examples"]
    """The class of each example."""
    groups: Int32[np.ndarray, " examples"]
    """The session or domain of each example; zeros where the set has none."""
    names: Sequence[str]
    """The file of origin of each example; "" where there was none."""

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        """The images at the given positions, in memory."""
        return np.asarray(self.images[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared set."""

    name: str
    folder: Path
    train: Part
    test: Part
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    """Of the sessions or domains, in their published order; () where there are none."""
    sha256: str
    """Over images, labels, groups and the names of classes and groups."""

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Map a prepared set into memory; nothing is read before it is needed.

        Raises `UserError` where the set is not there, not complete, of another version of
        promptax, or where a file has not the size that it should have.
        """
        meta = read_meta(folder)
        train, test = (_part(folder, name, meta) for name in PARTS)
        return cls(
            folder.name,
            folder,
            train,
            test,
            tuple(meta["class_names"]),
            tuple(meta["group_names"]),
            digest(meta),
        )

    def verify(self) -> None:
        """Read everything and compare with the digests of `meta.json`.

        Raises `UserError` that names the file that differs.
        """
        for file, expected in read_meta(self.folder)["files"].items():
            if sha256_of(self.folder / file) != expected:
                raise UserError(
                    f"'{self.folder / file}' has changed since the set was prepared: remove "
                    f"'{self.folder}' and prepare it again."
                )


class Lines(Sequence[str]):
    """The lines of a text file, read when the first of them is asked for."""

    def __init__(self, file: Path, length: int):
        self._file = file
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        return self._lines[index]

    @cached_property
    def _lines(self) -> list[str]:
        try:
            lines = self._file.read_text("utf-8", "surrogateescape").split("\n")[:-1]
        except OSError as error:
            raise _damaged(self._file, error.strerror) from None
        if len(lines) != self._length:
            raise _damaged(self._file, f"{len(lines)} lines, expected {self._length}")
        return lines


def read_meta(folder: Path) -> dict[str, Any]:
    """The `meta.json` of a prepared set. Raises `UserError` as `Dataset.open` does."""
    file = folder / "meta.json"
    if not folder.is_dir():
        begun = folder.with_name(f"{folder.name}.partial").is_dir()
        state = "not completely prepared: the same command goes on" if begun else "not prepared"
        raise UserError(f"data set '{folder}' is {state}.")
    if not file.exists():
        raise UserError(f"'{folder}' is no prepared data set: it has no meta.json.")
    meta = read_json(file, remedy=f"Remove '{folder}' and prepare the set again.")
    try:
        version = meta["version"]
    except (KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    if version != VERSION:
        raise UserError(
            f"data set '{folder}' was prepared by another version of promptax (layout "
            f"{version}, expected {VERSION}): remove the folder and prepare it again."
        )
    try:
        digest(meta)
        np.empty((*(meta["examples"][name] for name in PARTS), *meta["shape"], 0))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from None
    return meta


def digest(meta: Mapping[str, Any]) -> str:
    """The digest of a set: of its arrays and of the names of its classes and groups."""
    arrays = [meta["files"][f"{part}.{array}.npy"] for part in PARTS for array in ARRAYS]
    whole = json.dumps([arrays, list(meta["class_names"]), list(meta["group_names"])])
    return hashlib.sha256(whole.encode()).hexdigest()


def _part(folder: Path, name: str, meta: Mapping[str, Any]) -> Part:
    count = meta["examples"][name]
    shapes = {"images": (count, *meta["shape"]), "labels": (count,), "groups": (count,)}
    arrays = {
        array: _map(folder / f"{name}.{array}.npy", shape, array) for array, shape in shapes.items()
    }
    return Part(**arrays, names=Lines(folder / f"{name}.names.txt", count))


def _map(file: Path, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype(np.uint8 if kind == "images" else "<i4")
    try:
        array = map_npy(file)
    except UserError as error:
        again = f"Remove '{file.parent}', which is damaged, and prepare the set again."
        raise UserError(f"{error} {again}") from None
    except Exception as error:
        # NumPy lets through whatever its header parser raises on a damaged file.
        raise _damaged(file, error) from None
    if (array.shape, array.dtype) != (shape, dtype):
        raise _damaged(file, f"{array.dtype} {array.shape}, expected {dtype} {shape}")
    return array if kind == "images" else np.asarray(array)


def _damaged(file: Path, reason: object) -> UserError:
    return UserError(
        f"'{file}' is damaged ({str(reason).splitlines()[0] if str(reason) else 'unreadable'}): "
        f"remove '{file.parent}' and prepare the set again."
    )
