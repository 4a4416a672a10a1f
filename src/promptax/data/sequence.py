"""Several data sets as one stream, such as 5-datasets: a task is a set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from promptax.data.dataset import Dataset
from promptax.data.source import Source
from promptax.data.stream import Split, TaskStream


class ConcatenatedSource:
    """Sources one after another, whose images are brought to one size and number of channels.

    One compiled step takes images of one shape. Smaller images are enlarged on the host
    (bilinear) to the largest height and width; grey ones get three channels where others have.
    """

    def __init__(self, sources: Sequence[Source], label_offsets: Sequence[int]):
        self.sources = tuple(sources)
        self.starts = np.cumsum([0, *(len(source.labels) for source in sources)])
        shapes = np.array([source[np.arange(1)].shape[1:] for source in sources])
        self.shape = tuple(int(n) for n in shapes.max(0))
        moved = [s.labels + at for s, at in zip(sources, label_offsets, strict=True)]
        self.labels = np.concatenate(moved).astype(np.int32)

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        out = np.empty((len(index), *self.shape), np.uint8)
        member = np.searchsorted(self.starts, index, side="right") - 1
        for number in np.unique(member):
            rows = np.flatnonzero(member == number)
            images = self.sources[number][index[rows] - self.starts[number]]
            out[rows] = enlarge(images, *self.shape[:2])
        return out


def enlarge(
    images: UInt8[np.ndarray, "batch height width channel"], height: int, width: int
) -> UInt8[np.ndarray, "batch new_height new_width channel"]:
    """Bilinear, half-pixel centres, edges repeated."""
    if images.shape[1:3] == (height, width):
        return images
    rows, columns = _weights(images.shape[1], height), _weights(images.shape[2], width)
    tall = np.einsum("th,bhwc->btwc", rows, images.astype(np.float32), optimize=True)
    return np.rint(np.einsum("uw,btwc->btuc", columns, tall, optimize=True)).astype(np.uint8)


def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    distance = np.abs(centre[:, None] - np.arange(old))
    return np.maximum(0, 1 - distance).astype(np.float32)


def dataset_sequence(sets: Sequence[Dataset], *, name: str = "sequence") -> TaskStream:
    """The sets in the given order, each a task with classes of its own.

    The published 5-datasets (Ebrahimi et al., 2020) enlarges every image to 256 pixels; here the
    images of a smaller set are first enlarged to the size of the largest (28 to 32 pixels).
    """
    offsets = np.cumsum([0, *(len(s.class_names) for s in sets[:-1])]).tolist()
    train = ConcatenatedSource([s.train for s in sets], offsets)
    test = ConcatenatedSource([s.test for s in sets], offsets)
    names = tuple(f"{s.name} {label}" for s in sets for label in s.class_names)
    stages, tasks = (
        tuple(_split(s, at, part.starts[n : n + 2]) for n, (s, at) in enumerate(pairs))
        for part, pairs in ((p, list(zip(sets, offsets, strict=True))) for p in (train, test))
    )
    return TaskStream(name, train, test, names, stages, tasks)


def _split(member: Dataset, offset: int, span: np.ndarray) -> Split:
    classes = tuple(range(offset, offset + len(member.class_names)))
    return Split(member.name, classes, np.arange(*span))
