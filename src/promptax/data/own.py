"""A data set in memory, from two files of the user's own."""

from pathlib import Path

import numpy as np

from promptax.core.errors import UserError
from promptax.data.dataset import Dataset, Part
from promptax.data.source import ArraySource, read_arrays


def own_set(train: Path, test: Path) -> Dataset:
    """A data set from a training and a test file in NumPy's `.npz` format.

    Both need the arrays `images` (uint8) and `labels`, and can have `groups` (the domain of each
    example). The training file can also have `class_names` and `group_names`.

    Raises `UserError` if a file is missing or damaged, lacks an array, or has one of the wrong
    type or shape.
    """
    train_arrays = _read(train)
    parts = (_part(train_arrays, train), _part(_read(test), test))
    examples = sum(len(part.labels) for part in parts)
    classes = 1 + max(int(part.labels.max()) for part in parts)
    groups = 1 + max(int(part.groups.max()) for part in parts)
    # Checked here, before names of that many classes are made: one wrong label can be 2^31.
    for kind, count in (("labels", classes), ("groups", groups)):
        if count > examples:
            raise UserError(
                f"{train}: {kind} should run from 0 without gaps, but the largest is {count - 1}."
            )
    has_groups = "groups" in train_arrays
    return Dataset(
        name=train.stem,
        folder=train.parent,
        train=parts[0],
        test=parts[1],
        class_names=_names(train_arrays, "class_names", classes),
        group_names=_names(train_arrays, "group_names", groups) if has_groups else (),
        sha256="",
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    for name in ("images", "labels"):
        if name not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise UserError(
                f"data file '{path}' should hold `images` and `labels`; it has {found}."
            )
    return arrays


def _part(arrays: dict[str, np.ndarray], path: Path) -> Part:
    source = ArraySource(arrays["images"], arrays["labels"], str(path))
    groups = arrays.get("groups", np.zeros(len(source.labels), int))
    if groups.shape != source.labels.shape or groups.dtype.kind not in "iu" or groups.min() < 0:
        raise UserError(
            f"{path}: groups should be {len(source.labels)} numbers from 0, "
            f"got {groups.dtype} {groups.shape}."
        )
    return Part(
        source.images,
        source.labels,
        groups.astype(np.int32),
        names=[""] * len(source.labels),
    )


def _names(arrays: dict[str, np.ndarray], key: str, count: int) -> tuple[str, ...]:
    names = arrays[key].tolist() if key in arrays else range(count)
    return tuple(map(str, names))
