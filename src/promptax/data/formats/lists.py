"""Lists of images that divide a set into training and test images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.core.files import read_text
from promptax.core.text import printable
from promptax.data.formats.format import AbstractFormat, Files, Listed, Listing, Pixels
from promptax.data.formats.names import NamedImages

_LOG = logging.getLogger(__name__)

MOST_DIGITS = 9
"""Of a class number."""

Numbers = Int[np.ndarray, " images"]
"""Class numbers."""


@dataclass(frozen=True, kw_only=True)
class AbstractNamedFormat(AbstractFormat):
    """A format whose images have names, so that lists of names can divide the set."""

    train_list: Path | None = None
    """Text file with the paths of the training images, such as `rose/1.jpg`, one in each line. It
    replaces the division of the set; without `test_list`, all other images are for testing. The
    number of its class can follow each path, as in `rose/1.jpg 0`, in all lines or in none: classes
    are then in the order of these numbers. A YAML file of CODA-Prompt is read too."""
    test_list: Path | None = None
    """List of the test images, in the same form; without `train_list`, all other images are for
    training."""

    @property
    def has_lists(self) -> bool:
        """Whether lists divide the set."""
        return self.train_list is not None or self.test_list is not None

    def divided(self, listing: Listing) -> Listing:
        """The set as the lists divide it, or as it is if there are none.

        Images and classes that are in no list are left out. Classes are in the order of their
        numbers if a list has numbers, and as in `listing` otherwise.

        Raises `UserError` for a list that names no image of the set, an image twice, a class by
        several numbers or only some classes by number, or test images of a class without training
        images.
        """
        if not self.has_lists:
            return listing
        pool = _pool(listing)
        if not all(pool.names):
            raise UserError(
                f"the images in '{listing.files[0]}' have no names that lists could name: leave "
                "out train_list and test_list."
            )
        train, test = _chosen(pool.names, self.train_list, self.test_list)
        order = _class_order(np.asarray(pool.labels), listing.class_names, train, test)
        if unlisted := len(pool.names) - len(train.index) - len(test.index):
            dropped = len(listing.class_names) - len(order)
            _LOG.info("%d images and %d classes are in no list: left out", unlisted, dropped)
        number_of = np.full(len(listing.class_names), -1)
        number_of[order] = np.arange(len(order))
        return replace(
            listing,
            train=_picked(pool, train.index, number_of),
            test=_picked(pool, test.index, number_of),
            class_names=tuple(listing.class_names[label] for label in order),
            split="lists",
        )


@dataclass(frozen=True)
class _Chosen:
    """The images of a list."""

    index: Int[np.ndarray, " images"]
    """Their positions in the set, ascending."""
    numbers: Numbers | None
    """Their class numbers; None if the list has none."""
    source: str
    """The list, for messages."""


def _chosen(
    names: Sequence[str], train_list: Path | None, test_list: Path | None
) -> tuple[_Chosen, _Chosen]:
    """The training and the test images of two lists, or of one list and the rest."""
    images = NamedImages(names)
    given = [None if file is None else _read_list(file, images) for file in (train_list, test_list)]
    named = [chosen for chosen in given if chosen is not None]
    train, test = (chosen or _rest(named[0], len(names)) for chosen in given)
    both = np.intersect1d(train.index, test.index)
    if len(both):
        raise UserError(f"'{printable(names[both[0]])}' is in {train.source} and in {test.source}.")
    return train, test


def _rest(listed: _Chosen, count: int) -> _Chosen:
    index = np.setdiff1d(np.arange(count), listed.index)
    if not len(index):
        raise UserError(f"{listed.source} names all images of the set, so that none are left over.")
    return _Chosen(index, None, f"the images that are not in {listed.source}")


def _class_order(
    labels: Numbers, class_names: Sequence[str], train: _Chosen, test: _Chosen
) -> list[int]:
    """The classes of the images in the lists, in their new order.

    Args:
        labels: The class of each image of the set.
        class_names: By class number, for errors.
        train: The training images.
        test: The test images.
    """
    classes = sorted(set(labels[train.index].tolist()))
    untrained = np.setdiff1d(labels[test.index], classes)
    if len(untrained):
        raise UserError(
            f"class '{printable(class_names[untrained[0]])}' has test images in {test.source}, "
            f"but no training image in {train.source}."
        )
    # A list with numbers is enough: the other one may have none, or be the rest of the images.
    with_numbers = [chosen for chosen in (train, test) if chosen.numbers is not None]
    if not with_numbers:
        return classes
    sources = " and ".join(chosen.source for chosen in with_numbers)
    numbers = [number for chosen in with_numbers for number in np.asarray(chosen.numbers).tolist()]
    of_images = np.concatenate([labels[chosen.index] for chosen in with_numbers]).tolist()
    unnumbered = np.setdiff1d(classes, of_images)
    if len(unnumbered):
        raise UserError(
            f"{sources} gives classes numbers, but class '{printable(class_names[unnumbered[0]])}' "
            "has no image in it: number the classes in a list of the training images, or leave all "
            "numbers out."
        )
    numbered = sorted(set(zip(numbers, of_images, strict=True)))
    if not len(numbered) == len(set(numbers)) == len(classes):
        raise UserError(
            f"{sources} should give each of the {len(classes)} classes a number of its own, and "
            "the same one to all images of a class."
        )
    return [label for _, label in numbered]


def _pool(listing: Listing) -> Listed:
    """The training and, behind them, the test examples of a set."""
    parts = (listing.train, listing.test)
    names = [name for part in parts for name in part.names]
    groups = [np.zeros(len(part.names)) if part.groups is None else part.groups for part in parts]
    images = listing.train.images
    if isinstance(images, Files):
        images = Files(images.tree, names)
    elif isinstance(images, Pixels) and isinstance(listing.test.images, Pixels):
        images = Pixels(np.concatenate([images.array, listing.test.images.array]))
    return Listed(
        images,
        np.concatenate([part.labels for part in parts]).astype(int),
        names,
        np.concatenate(groups).astype(int),
    )


def _picked(
    pool: Listed, index: Int[np.ndarray, " some"], number_of: Int[np.ndarray, " classes"]
) -> Listed:
    """Some examples of a set, with new class numbers."""
    names = [pool.names[int(position)] for position in index]
    images = pool.images
    if isinstance(images, Files):
        images = Files(images.tree, names)
    elif isinstance(images, Pixels):
        images = Pixels(images.array[index])
    labels = number_of[np.asarray(pool.labels)[index]]
    groups = np.asarray(pool.groups)[index]
    return Listed(images, labels.tolist(), names, groups.tolist())


def _read_list(file: Path, images: NamedImages) -> _Chosen:
    """Find the images of a list.

    Raises `UserError` if the list is empty, gives only some images the number of their class, or
    names an image that is not there, twice, or so that it could be several.
    """
    source = f"list '{file}'"
    stripped = [line.strip() for line in read_text(file, "list").splitlines()]
    lines = {number: line for number, line in enumerate(stripped, start=1) if line}
    if not lines:
        raise UserError(f"{source} names no image.")
    if next(iter(lines.values())) == "data:":
        paths, numbers = _of_yaml(list(lines.values()), file)
    else:
        paths, numbers = _of_text(lines, images, source)
    positions = np.asarray(images.resolve(paths, source))
    ascending = np.argsort(positions)
    return _Chosen(
        positions[ascending], None if numbers is None else np.asarray(numbers)[ascending], source
    )


def _of_text(
    lines: Mapping[int, str], images: NamedImages, source: str
) -> tuple[list[str], list[int] | None]:
    """The paths of a text file, and the class numbers behind them if it has any.

    Raises `UserError` if only some of the lines, which are by their numbers, have a class number.
    """
    paths = []
    numbers = {}
    for position, line in lines.items():
        *path, last = line.rsplit(maxsplit=1)
        # A path can have spaces, and even end in a number.
        if path and is_number(last) and not images.find(line):
            paths += path
            numbers[position] = int(last)
        else:
            paths.append(line)
    without = [position for position in lines if position not in numbers]
    if numbers and without:
        raise UserError(
            f"line {without[0]} of {source}, '{printable(lines[without[0]])}', has no class number "
            f"behind the path, but line {next(iter(numbers))} has one: give every line the number "
            "of its class, or none."
        )
    return paths, list(numbers.values()) or None


def is_number(text: str) -> bool:
    """Whether a text is a whole number from 0 on, of a length that class numbers have."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def _of_yaml(lines: Sequence[str], file: Path) -> tuple[list[str], list[int]]:
    """The paths and class numbers of a YAML file with the lists `data` and `targets`.

    This is all of YAML that CODA-Prompt's files use (commit 6417d4f, dataloaders/splits).
    """
    lists: dict[str, list[str]] = {"data": [], "targets": []}
    current = "data"
    for line in lines:
        if line.startswith("- "):
            lists[current].append(line[2:].strip())
        elif line.removesuffix(":") in lists and line.endswith(":"):
            current = line.removesuffix(":")
        else:
            raise UserError(
                f"'{printable(line)}' of '{file}' is not an item of its lists, data and targets."
            )
    paths = lists["data"]
    targets = lists["targets"]
    if len(paths) != len(targets) or not all(map(is_number, targets)):
        raise UserError(
            f"'{file}' should have a number in its list targets for each path in its list data."
        )
    return paths, [int(target) for target in targets]
