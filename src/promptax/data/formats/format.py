"""The interface of a format: it lists the examples of a set before any image is decoded."""

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree

Stored = bytes | UInt8[np.ndarray, "height width channel"]
"""An image as it is stored: the bytes of an encoded file (JPEG, PNG, ...), or pixels."""


class AbstractImages(ABC):
    """The training or the test images of a set, as they are stored."""

    def order(self, count: int) -> Int[np.ndarray, " examples"]:
        """All positions, in the order in which images are read fastest."""
        return np.arange(count)

    @abstractmethod
    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """Read the images at some positions, one after another.

        `positions` are the end of `order`: all of it, or what a stopped run left.

        Raises `UserError` if the file that holds the images is damaged.
        """


@dataclass(frozen=True)
class Pixels(AbstractImages):
    """Images in an array, which can be memory-mapped."""

    array: UInt8[np.ndarray, "examples height width channel"]

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """Take the images out of the array."""
        return (self.array[position] for position in positions)


@dataclass(frozen=True)
class Files(AbstractImages):
    """Image files in a folder or in archives."""

    tree: AbstractTree
    names: Sequence[str]

    def order(self, count: int) -> Int[np.ndarray, " examples"]:
        """All positions, in the order of the files in the archive."""
        rank = {name: number for number, name in enumerate(self.tree.names)}
        return np.argsort([rank[name] for name in self.names], kind="stable")

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """Read the files from the folder or archives."""
        return self.tree.read(self.names[int(position)] for position in positions)


@dataclass(frozen=True)
class Listed:
    """The training or the test examples of a set."""

    images: AbstractImages
    labels: Sequence[int] | Int[np.ndarray, " examples"]
    """The class number of each example."""
    names: Sequence[str]
    """The file of origin of each example; "" if there was none."""
    groups: Sequence[int] | Int[np.ndarray, " examples"] | None = None
    """The session or domain of each example; None stands for zeros."""


@dataclass(frozen=True)
class Listing:
    """The examples of a set before any image is decoded."""

    train: Listed
    test: Listed
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    """The files that the set is made from, or its folder."""
    group_names: tuple[str, ...] = ()
    """Names of the sessions or domains, if the set has any."""
    left_out: tuple[str, ...] = ()
    """Images that are damaged in the published set, and are never read."""
    split: str = ""
    """How training and test images were divided, if the set has several divisions in use."""


class AbstractFormat(ABC):
    """A way in which data sets are stored by their publishers.

    Subclasses are final dataclasses, whose fields are flags of `promptax data prepare`.
    """

    size: int | None = None
    """The side, in pixels, to which images are resized by default; None: as stored."""

    @abstractmethod
    def list(self, path: Path) -> Listing:
        """Find all examples, with labels and groups, in an archive or a folder.

        Raises `UserError` if something is missing or damaged, and says what was expected.
        """


def split_by_name(
    names: Sequence[str], classes: Sequence[str], share: float
) -> tuple[list[str], list[str]]:
    """Divide a set that is published without a split.

    Of the `n` files of a class, the `round(share * n)` whose names have the smallest sha256
    digests are for testing. Only the last two parts of a name count (`class folder/file`), so that
    the split is the same on every machine, and for a folder and an archive.

    Args:
        names: The files.
        classes: The class of each file.
        share: Of the test files among all files.

    Returns:
        The training and the test files, in the order of `names`.

    Raises:
        UserError: For a share that is not between 0 and 1, or that leaves no test image.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of test images is {share}; expected between 0 and 1.")
    names_of = defaultdict(list)
    for name, label in zip(names, classes, strict=True):
        names_of[label].append(name)
    test = set()
    for members in names_of.values():
        test.update(sorted(members, key=_digest)[: round(share * len(members))])
    if names and not test:
        most = max(map(len, names_of.values()))
        raise UserError(
            f"a share of {share} leaves no image for testing, since no class has more than {most} "
            "images: choose a larger test share."
        )
    return [name for name in names if name not in test], [name for name in names if name in test]


def _digest(name: str) -> bytes:
    tail = "/".join(name.split("/")[-2:])
    return hashlib.sha256(tail.encode("utf-8", "surrogateescape")).digest()
