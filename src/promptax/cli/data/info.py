"""`promptax data info NAME`: count the images of a set or stream, and draw some of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Int

from promptax.cli.data.grid import save_grid, save_image
from promptax.cli.data.table import columns, table
from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.data.benchmark import BENCHMARKS
from promptax.data.bundled import BUNDLED_SETS, bundled_set
from promptax.data.dataset import Dataset, Part, read_meta
from promptax.data.location import data_dir_flags, open_dataset

SHOWN = 5
"""Skipped images that are listed by name."""
MOST_TASKS = 10
"""Most tasks that the command for training asks for."""
CLASSES_PER_TASK = 2
"""Fewest classes of a task in it: a single one has nothing to compete with."""
MOST_CLASSES = 10
MOST_COMPARED = 500
"""Classes, and images of each, among which a typical image is looked for."""
MOST_PER_CLASS = 100
"""Most images of a class in a picture."""


@dataclass(frozen=True)
class Info:
    """Describe a set or the sets of a stream: images by class and group, shape, origin, digest."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of a stream, of a prepared set, or of one that comes with the package."""
    grid: Path | None = None
    """Draw some training images of each class into this PNG file."""
    per_class: int = 10
    """Number of images of each class in the picture."""
    sample: Path | None = None
    """Write a typical test image into this PNG file, to try `promptax predict` on."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""

    def __post_init__(self):
        if not 1 <= self.per_class <= MOST_PER_CLASS:
            raise UserError(
                f"images per class is {self.per_class}; expected 1 to {MOST_PER_CLASS}."
            )


def run(argv: Sequence[str]) -> None:
    """Print the facts and counts of a set or a stream, and draw the picture if it is asked for."""
    flags: Info = parse(Info, argv, prog="promptax data info")
    benchmark = BENCHMARKS.get(flags.name)
    names = (flags.name,) if benchmark is None else benchmark.sets
    sets = {name: _open(name, flags.data_dir) for name in names}
    if benchmark is not None:
        print(f"{benchmark.stream(flags.name, sets.__getitem__)}\n")
    for number, dataset in enumerate(sets.values()):
        print("\n" * bool(number) + "\n".join(_described(dataset)))
        print(f"\n{_counts(dataset)}")
    first = sets[names[0]]
    if benchmark is not None or flags.name not in BUNDLED_SETS:
        flags_of_stream = [] if benchmark is not None else _stream_flags(first)
        command = ["promptax train l2p --data.stream", flags.name, *flags_of_stream]
        print(f"\ntrain on it: {' '.join([*command, *data_dir_flags(flags.data_dir)])}")
    if flags.grid is not None:
        save_grid(first, flags.grid, flags.per_class)
        print(f"\ngrid: {flags.grid}")
    if flags.sample is not None:
        typical = _typical(first)
        save_image(first.test.images[typical], flags.sample)
        name = first.class_names[int(first.test.labels[typical])]
        print(f"\nsample: {flags.sample} ({name})")


def _typical(dataset: Dataset) -> int:
    """The test image that is most clearly of its class, by the mean training images of classes.

    Any other image can be an odd one, which no model gets right.
    """
    classes = range(min(MOST_CLASSES, len(dataset.class_names)))
    means = np.stack([dataset.train[_some(dataset.train, c)].mean(axis=0) for c in classes])
    best = (np.inf, 0)
    for label in classes:
        for index in _some(dataset.test, label):
            image = dataset.test[np.array([index])]
            distances = np.square(image - means).reshape(len(means), -1).sum(axis=1)
            nearest_other = np.delete(distances, label).min(initial=np.inf)
            best = min(best, (distances[label] / nearest_other, int(index)))
    return best[1]


def _some(part: Part, label: int) -> Int[np.ndarray, " some"]:
    return np.flatnonzero(part.labels == label)[:MOST_COMPARED]


def _open(name: str, given: Path | None) -> Dataset:
    return bundled_set(name) if name in BUNDLED_SETS else open_dataset(name, given)


def _stream_flags(dataset: Dataset) -> tuple[str, ...]:
    """The flags that make a stream of tasks of a set."""
    if dataset.group_names:
        return ("--data.kind", "domains")
    tasks = max(1, min(MOST_TASKS, len(dataset.class_names) // CLASSES_PER_TASK))
    return ("--data.tasks", str(tasks))


def _described(dataset: Dataset) -> Iterator[str]:
    if dataset.name not in BUNDLED_SETS:
        yield from _facts(dataset, read_meta(dataset.folder))
        return
    yield f"{dataset.name}: comes with the package"
    height, width, channels = dataset.train.images.shape[1:]
    yield (
        f"images     {height} x {width} x {channels}: "
        f"{len(dataset.train.labels)} training, {len(dataset.test.labels)} test"
    )
    yield f"classes    {len(dataset.class_names)}"


def _facts(dataset: Dataset, meta: Mapping[str, Any]) -> Iterator[str]:
    height, width, channels = meta["shape"]
    origin = meta.get("made_from", {})
    yield f"{dataset.name}: {dataset.folder.absolute()}"
    yield (
        f"images     {height} x {width} x {channels}: "
        f"{len(dataset.train.labels)} training, {len(dataset.test.labels)} test"
    )
    yield f"classes    {len(dataset.class_names)}"
    files = ", ".join(name for name, _ in origin.get("files", ()))
    yield f"made from  {origin.get('format', '?')}: {files}"
    if dataset.split:
        yield f"split      {dataset.split}"
    yield f"sha256     {dataset.sha256}"
    skipped = [entry for part in meta.get("skipped", {}).values() for entry in part]
    yield f"skipped    {len(skipped)} damaged images"
    yield from (f"           {entry['name']}: {entry['reason']}" for entry in skipped[:SHOWN])
    if len(skipped) > SHOWN:
        yield f"           ... and {len(skipped) - SHOWN} more, in meta.json"
    if left_out := meta.get("left_out"):
        yield f"left out   {len(left_out)} that are damaged as published"


def _counts(dataset: Dataset) -> str:
    """Numbers of images as `training/test`, by class, and by group if there are groups."""
    groups = max(1, len(dataset.group_names))
    train = _count(dataset.train, len(dataset.class_names), groups)
    test = _count(dataset.test, len(dataset.class_names), groups)
    if not dataset.group_names:
        counts = zip(dataset.class_names, train[:, 0], test[:, 0], strict=True)
        cells = [f"{name} {in_train}/{in_test}" for name, in_train, in_test in counts]
        return "images of each class (training/test)\n" + columns(cells)
    rows = [
        ("training/test", *dataset.group_names),
        ("all", *_fractions(train.sum(0), test.sum(0))),
    ]
    for number, name in enumerate(dataset.class_names):
        rows.append((name, *_fractions(train[number], test[number])))
    return table(rows)


def _fractions(
    train: Int[np.ndarray, " groups"], test: Int[np.ndarray, " groups"]
) -> Iterator[str]:
    return (f"{in_train}/{in_test}" for in_train, in_test in zip(train, test, strict=True))


def _count(part: Part, classes: int, groups: int) -> Int[np.ndarray, "classes groups"]:
    """The number of examples of each class in each group."""
    counts = np.zeros((classes, groups), int)
    np.add.at(counts, (part.labels, part.groups), 1)
    return counts
