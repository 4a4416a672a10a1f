"""What a format tells `prepare` of a set before any image is decoded."""

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
"""An image as it is stored: an encoded file (JPEG, PNG, ...) or pixels."""


class AbstractImages(ABC):
    """The images of one part, as they are stored."""

    def order(self, count: int) -> Int[np.ndarray, " examples"]:
        """All positions, in the order in which reading them is fast."""
        return np.arange(count)

    @abstractmethod
    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """The images at some positions, which come in the order of `order`.

        Raises `UserError` where the file that holds them is damaged.
        """


@dataclass(frozen=True)
class Pixels(AbstractImages):
    """Images in an array, in memory or mapped."""

    array: UInt8[np.ndarray, "examples height width channel"]

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """One after another."""
        return (self.array[position] for position in positions)


@dataclass(frozen=True)
class Files(AbstractImages):
    """Image files of a tree."""

    tree: AbstractTree
    names: Sequence[str]

    def order(self, count: int) -> Int[np.ndarray, " examples"]:
        """As the tree reads them fast."""
        rank = {name: n for n, name in enumerate(self.tree.names)}
        return np.argsort([rank[name] for name in self.names], kind="stable")

    def read(self, positions: Int[np.ndarray, " some"]) -> Iterator[Stored]:
        """One after another."""
        return self.tree.read(self.names[int(position)] for position in positions)


@dataclass(frozen=True)
class Listed:
    """The training or the test examples of a set."""

    images: AbstractImages
    labels: Sequence[int] | Int[np.ndarray, " examples"]
    names: Sequence[str]
    groups: Sequence[int] | Int[np.ndarray, " examples"] | None = None
    """None stands for zeros."""


@dataclass(frozen=True)
class Listing:
    """A set, before any image is decoded."""

    train: Listed
    test: Listed
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    """The files that it is made from, or the one folder."""
    group_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Images that are known to be damaged as published, and are never read."""


class AbstractFormat(ABC):
    """How a data set is stored where it is published. Subclasses are final dataclasses."""

    size: int | None = None
    """The side to which images are resized unless another is asked for; None: as stored."""

    @abstractmethod
    def list(self, path: Path) -> Listing:
        """Find all examples, with labels and groups, in an archive or a folder.

        Raises `UserError` that says what was expected, where something is missing or damaged.
        """


def split_by_name(
    names: Sequence[str], classes: Sequence[str], share: float
) -> tuple[list[str], list[str]]:
    """Training and test files of a set that is published without a split.

    In each class, the test files are the `round(share * n)` of n whose names have the
    smallest sha256 digests. A name counts as `class folder/file`, whatever the folder above
    is called: the split is the same on every machine, for a folder and an archive.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of test images is {share}; expected between 0 and 1.")
    of_class = defaultdict(list)
    for name, label in zip(names, classes, strict=True):
        of_class[label].append(name)
    test = set()
    for members in of_class.values():
        test.update(sorted(members, key=_digest)[: round(share * len(members))])
    return [name for name in names if name not in test], [name for name in names if name in test]


def _digest(name: str) -> bytes:
    tail = "/".join(name.split("/")[-2:])
    return hashlib.sha256(tail.encode("utf-8", "surrogateescape")).digest()
