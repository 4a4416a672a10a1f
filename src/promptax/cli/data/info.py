"""`promptax data info NAME`: images by class and group, and a picture of some."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Int

from promptax.cli.data.grid import save_grid
from promptax.cli.data.table import columns, table
from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.data.dataset import Dataset, Part, read_meta
from promptax.data.location import open_dataset

SHOWN = 5
"""Skipped images that are named."""


@dataclass(frozen=True)
class Info:
    """Print what is in a prepared set: images by class and group, shape, origin, digest."""

    name: Annotated[str, tyro.conf.Positional]
    """Of a prepared set."""
    grid: Path | None = None
    """Write a picture of some training images of each class into this PNG file."""
    per_class: int = 10
    """Images of each class in the picture."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or one in the user's cache, if None."""

    def __post_init__(self):
        if not 1 <= self.per_class <= 100:
            raise UserError(f"images per class is {self.per_class}; expected 1 to 100.")


def run(argv: Sequence[str]) -> None:
    """Parse, print the tables and draw the picture."""
    flags: Info = parse(Info, argv, prog="promptax data info")
    dataset = open_dataset(flags.name, flags.data_dir)
    print("\n".join(_facts(dataset, read_meta(dataset.folder))))
    print(f"\n{_counts(dataset)}")
    if flags.grid is not None:
        save_grid(dataset, flags.grid, flags.per_class)
        print(f"\ngrid: {flags.grid}")


def _facts(dataset: Dataset, meta: Mapping[str, Any]) -> Iterator[str]:
    height, width, channels = meta["shape"]
    origin = meta.get("made_from", {})
    yield f"{dataset.name}: {dataset.folder}"
    yield (
        f"images     {height} x {width} x {channels}: "
        f"{len(dataset.train.labels)} training, {len(dataset.test.labels)} test"
    )
    yield f"classes    {len(dataset.class_names)}"
    files = ", ".join(name for name, _ in origin.get("files", ()))
    yield f"made from  {origin.get('format', '?')}: {files}"
    yield f"sha256     {dataset.sha256}"
    skipped = [entry for part in meta.get("skipped", {}).values() for entry in part]
    yield f"skipped    {len(skipped)} damaged images"
    yield from (f"           {entry['name']}: {entry['reason']}" for entry in skipped[:SHOWN])
    if len(skipped) > SHOWN:
        yield f"           ... and {len(skipped) - SHOWN} more, in meta.json"
    if left_out := meta.get("left_out"):
        yield f"left out   {len(left_out)} that are damaged as published"


def _counts(dataset: Dataset) -> str:
    """Images as `training/test`, by class, and by class and group where there are groups."""
    shape = (len(dataset.class_names), max(1, len(dataset.group_names)))
    train, test = (_count(part, shape) for part in (dataset.train, dataset.test))
    cells = [
        [f"{a}/{b}" for a, b in zip(*rows, strict=True)]
        for rows in zip(train.tolist(), test.tolist(), strict=True)
    ]
    if not dataset.group_names:
        named = zip(dataset.class_names, cells, strict=True)
        return "training/test\n" + columns([f"{name} {cell}" for name, (cell,) in named])
    whole = [f"{a}/{b}" for a, b in zip(train.sum(0), test.sum(0), strict=True)]
    named = zip(("all", *dataset.class_names), (whole, *cells), strict=True)
    head = ("training/test", *dataset.group_names)
    return table([head, *((name, *row) for name, row in named)])


def _count(part: Part, shape: tuple[int, int]) -> Int[np.ndarray, "classes groups"]:
    place = np.ravel_multi_index((part.labels, part.groups), shape)
    return np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
