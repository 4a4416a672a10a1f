"""Several data sets as one: a sequence such as 5-datasets, or sets that are domains."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.dataset import Dataset
from promptax.data.source import Source
from promptax.data.stream import Split, TaskStream


class ConcatenatedSource:
    """Sources one after another, with images of one size and number of channels.

    A compiled step takes images of one shape. Smaller images are enlarged on the host (bilinear)
    to the largest height and width; grey ones get three channels if others have three.
    """

    def __init__(self, sources: Sequence[Source], label_offsets: Sequence[int]):
        """Concatenate `sources`, whose labels are moved up by `label_offsets`, one for each."""
        self.sources = tuple(sources)
        self.starts = np.cumsum([0, *(len(source.labels) for source in sources)])
        # One image tells the shape of all, and reads no other image of a large source.
        shapes = np.array([source[np.arange(1)].shape[1:] for source in sources])
        self.shape = tuple(int(n) for n in shapes.max(0))
        labels = [
            source.labels + offset for source, offset in zip(sources, label_offsets, strict=True)
        ]
        self.labels = np.concatenate(labels).astype(np.int32)

    @property
    def groups(self) -> Int32[np.ndarray, " examples"]:
        """The number of the source that each example comes from."""
        numbers = np.arange(len(self.sources), dtype=np.int32)
        return np.repeat(numbers, np.diff(self.starts))

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        height, width, _ = self.shape
        images = np.empty((len(index), *self.shape), np.uint8)
        source_of = np.searchsorted(self.starts, index, side="right") - 1
        for number in np.unique(source_of):
            rows = np.flatnonzero(source_of == number)
            own_images = self.sources[number][index[rows] - self.starts[number]]
            # Assigning one channel to three repeats it.
            images[rows] = enlarge(own_images, height, width)
        return images


def enlarge(
    images: UInt8[np.ndarray, "batch height width channel"], height: int, width: int
) -> UInt8[np.ndarray, "batch new_height new_width channel"]:
    """Resize images to at least their size: bilinear, half-pixel centres, edges repeated."""
    if images.shape[1:3] == (height, width):
        return images
    rows = _bilinear_weights(images.shape[1], height)
    columns = _bilinear_weights(images.shape[2], width)
    tall = np.einsum("th,bhwc->btwc", rows, images.astype(np.float32), optimize=True)
    return np.rint(np.einsum("uw,btwc->btuc", columns, tall, optimize=True)).astype(np.uint8)


def _bilinear_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The share of each old pixel in each new one, along one axis."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    distance = np.abs(centre[:, None] - np.arange(old))
    return np.maximum(0, 1 - distance).astype(np.float32)


def dataset_sequence(sets: Sequence[Dataset], *, name: str = "sequence") -> TaskStream:
    """A stream of the sets in the given order, each a task with classes of its own.

    The published 5-datasets (Ebrahimi et al., 2020) enlarges every image to 256 pixels; here the
    images of a smaller set are first enlarged to the size of the largest (28 to 32 pixels).
    """
    joined = joined_sets(sets, same_classes=False)
    tasks = []
    test_sets = []
    offset = 0
    for number, member in enumerate(sets):
        classes = tuple(range(offset, offset + len(member.class_names)))
        offset += len(classes)
        for source, splits in ((joined.train, tasks), (joined.test, test_sets)):
            index = np.arange(source.starts[number], source.starts[number + 1])
            splits.append(Split(member.name, classes, index))
    return TaskStream(
        name,
        joined.train,
        joined.test,
        joined.class_names,
        tasks=tuple(tasks),
        test_sets=tuple(test_sets),
    )


@dataclass(frozen=True, eq=False)
class JoinedSets:
    """Several data sets as one, which is divided into tasks as a single one is."""

    name: str
    train: ConcatenatedSource
    test: ConcatenatedSource
    class_names: tuple[str, ...]
    """By class number."""
    group_names: tuple[str, ...]
    """The names of the sets, which are the domains of the images."""
    split: str = ""


def joined_sets(sets: Sequence[Dataset], *, same_classes: bool) -> JoinedSets:
    """Several data sets as one.

    Args:
        sets: The sets.
        same_classes: Whether they have the same classes, by their names. If not, equal names in two
            sets are two classes.

    Raises:
        UserError: The sets should have the same classes, but one lacks a class of another, or has
            two classes of one name.
    """
    if same_classes:
        for member in sets:
            _check_unique_names(member)
        sets = [_numbered_as(sets[0], member) for member in sets]
        class_names = sets[0].class_names
        offsets = [0] * len(sets)
    else:
        class_names = tuple(f"{one.name} {label}" for one in sets for label in one.class_names)
        offsets = np.cumsum([0, *(len(member.class_names) for member in sets[:-1])]).tolist()
    return JoinedSets(
        name=" + ".join(member.name for member in sets),
        train=ConcatenatedSource([member.train for member in sets], offsets),
        test=ConcatenatedSource([member.test for member in sets], offsets),
        class_names=class_names,
        group_names=tuple(member.name for member in sets),
    )


def _check_unique_names(member: Dataset) -> None:
    """Check that names tell the classes of a set apart, because sets are joined by them."""
    name, count = Counter(member.class_names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"as domains, data sets are joined by the names of their classes, but '{member.name}' "
            f"has {count} classes called '{printable(name)}': rename all but one, and prepare the "
            "set again."
        )


def _numbered_as(first: Dataset, member: Dataset) -> Dataset:
    """A set of the same classes as another, with the numbers that they have there."""
    for one, other in ((first, member), (member, first)):
        lacking = [label for label in one.class_names if label not in other.class_names]
        if lacking:
            raise UserError(
                f"as domains, data sets need the same classes, but '{other.name}' has no "
                f"'{printable(lacking[0])}', which '{one.name}' has: rename the class or leave it "
                "out, or train on the sets one after another with kind 'sets'."
            )
    number = np.array([first.class_names.index(label) for label in member.class_names], np.int32)
    return replace(
        member,
        class_names=first.class_names,
        train=replace(member.train, labels=number[member.train.labels]),
        test=replace(member.test, labels=number[member.test.labels]),
    )
