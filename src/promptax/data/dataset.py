"""Prepared sets: images decoded once, in memory-mapped files.

A prepared set is a folder with `meta.json` and, for `train` and `test` each, such files as
`train.images.npy` (uint8), `train.labels.npy` and `train.groups.npy` (int32) and `train.names.txt`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Int, Int32, UInt8

from promptax.core.described import Described, Facts, some
from promptax.core.errors import UserError
from promptax.core.files import map_npy, read_bytes, read_json, sha256_of
from promptax.data.source import source_facts

VERSION = 1
"""Version of the layout of a prepared set."""

PARTS = ("train", "test")
ARRAYS = ("images", "labels", "groups")
"""Names of the arrays of a part, and of their files."""


@dataclass(frozen=True, eq=False, repr=False)
class Part(Described):
    """The training or the test examples of a set. It is a `Source`."""

    images: UInt8[np.ndarray, "examples height width channel"]
    """Memory-mapped and read-only, if the set is a prepared one."""
    labels: Int32[np.ndarray, " examples"]
    """The class of each example."""
    groups: Int32[np.ndarray, " examples"]
    """The session or domain of each example; zeros if the set has none."""
    names: Sequence[str]
    """The file of origin of each example; "" if there was none."""

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        """The images at the given positions, in memory."""
        return np.asarray(self.images[index])

    def _facts(self) -> Facts:
        yield from source_facts(self.images, self.labels)
        if self.groups.any():
            yield "groups", f"{1 + self.groups.max()}"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Described):
    """A data set: training and test examples with the names of their classes."""

    name: str
    folder: Path
    """The folder of its files."""
    train: Part
    test: Part
    class_names: tuple[str, ...]
    """By class number."""
    group_names: tuple[str, ...]
    """Names of the sessions or domains, in their published order; () if there are none."""
    sha256: str
    """Digest of images, labels, groups and the names of classes and groups; "" if the set is not a
    prepared one."""
    split: str = ""
    """How training and test images were divided, if the set has several divisions in use."""

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Map a prepared set into memory; images are not read before they are needed.

        Raises `UserError` if the set is missing, incomplete or from another version of promptax,
        or if a file does not have the expected size.
        """
        meta = read_meta(folder)
        return cls(
            name=folder.name,
            folder=folder,
            train=_open_part(folder, "train", meta),
            test=_open_part(folder, "test", meta),
            class_names=tuple(meta["class_names"]),
            group_names=tuple(meta["group_names"]),
            sha256=digest(meta),
            split=str(meta.get("split", "")),
        )

    def _facts(self) -> Facts:
        yield "name", self.name
        yield "images", f"{len(self.train.labels):,} training, {len(self.test.labels):,} test"
        yield "image", " x ".join(map(str, self.train.images.shape[1:]))
        yield "classes", f"{len(self.class_names)}: {some(self.class_names)}"
        if self.group_names:
            yield "groups", f"{len(self.group_names)}: {some(self.group_names)}"

    def verify(self) -> None:
        """Read all files and compare them with the digests in `meta.json`.

        Raises `UserError` for the first file that differs.
        """
        for file, expected in read_meta(self.folder)["files"].items():
            if sha256_of(self.folder / file) != expected:
                raise UserError(
                    f"'{self.folder / file}' has changed since the set was prepared: remove "
                    f"'{self.folder}' and prepare it again."
                )


class Lines(Sequence[str]):
    """The lines of a text file, which is read when the first one is needed.

    Most runs never need the names of images, and ImageNet has 1.3 million of them.
    """

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
            content = read_bytes(self._file, "list")
        except UserError as error:
            raise _damaged(self._file, error) from None
        # Names of files can be any bytes: those that are not UTF-8 become lone surrogates.
        text = content.decode("utf-8", "surrogateescape")
        lines = text.split("\n")[:-1]  # after the last line break there is nothing
        if len(lines) != self._length:
            raise _damaged(self._file, f"{len(lines)} lines, expected {self._length}")
        return lines


def read_meta(folder: Path) -> dict[str, Any]:
    """Read and check the `meta.json` of a prepared set.

    Raises `UserError` if the set is missing, incomplete, damaged or from another version of
    promptax.
    """
    file = folder / "meta.json"
    if not folder.is_dir():
        if folder.with_name(f"{folder.name}.partial").is_dir():
            raise UserError(
                f"data set '{folder}' is not completely prepared: the same command goes on."
            )
        raise UserError(f"data set '{folder}' is not prepared.")
    if not file.exists():
        raise UserError(f"'{folder}' is not a prepared data set: it has no meta.json.")
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
    # Everything that `Dataset.open` uses is tried here, so that it raises one kind of error. An
    # array of no bytes checks that its sizes are ones that NumPy accepts.
    try:
        digest(meta)
        np.empty((*(meta["examples"][name] for name in PARTS), *meta["shape"], 0))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from None
    return meta


def digest(meta: Mapping[str, Any]) -> str:
    """The digest of a prepared set: of its arrays and the names of its classes and groups."""
    arrays = [meta["files"][f"{part}.{array}.npy"] for part in PARTS for array in ARRAYS]
    whole = json.dumps([arrays, list(meta["class_names"]), list(meta["group_names"])])
    return hashlib.sha256(whole.encode()).hexdigest()


def _open_part(folder: Path, name: str, meta: Mapping[str, Any]) -> Part:
    count = meta["examples"][name]
    return Part(
        images=_map(folder / f"{name}.images.npy", (count, *meta["shape"]), np.uint8),
        # Labels and groups are needed as a whole, and small enough to be in memory.
        labels=np.asarray(_map(folder / f"{name}.labels.npy", (count,), "<i4")),
        groups=np.asarray(_map(folder / f"{name}.groups.npy", (count,), "<i4")),
        names=Lines(folder / f"{name}.names.txt", count),
    )


def _map(file: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """Map an array into memory, and check its shape and type."""
    try:
        array = map_npy(file)
    except UserError as error:
        again = f"Remove '{file.parent}', which is damaged, and prepare the set again."
        raise UserError(f"{error} {again}") from None
    except Exception as error:
        # NumPy lets through whatever its header parser raises on a damaged file.
        raise _damaged(file, error) from None
    if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
        expected = f"{np.dtype(dtype)} {shape}"
        raise _damaged(file, f"{array.dtype} {array.shape}, expected {expected}")
    return array


def _damaged(file: Path, reason: object) -> UserError:
    first_line = (str(reason) or "unreadable").splitlines()[0]
    return UserError(
        f"'{file}' is damaged ({first_line}): remove '{file.parent}' and prepare the set again."
    )
