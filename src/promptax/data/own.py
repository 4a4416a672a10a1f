"""Your own two files as a set, in memory."""

from pathlib import Path

import numpy as np

from promptax.core.errors import UserError
from promptax.data.dataset import Dataset, Part
from promptax.data.source import ArraySource, read_arrays


def own_set(train: Path, test: Path) -> Dataset:
    """A set from two `.npz` files with `images` (uint8) and `labels`; also `groups` (the domain
    of each example), and `class_names` and `group_names` in the training file, where there are any.

    Raises `UserError` where a file is missing, damaged, or lacks an array.
    """
    first, second = _read(train), _read(test)
    parts = _part(first, train), _part(second, test)
    examples = sum(len(part.labels) for part in parts)
    classes = 1 + max(int(part.labels.max()) for part in parts)
    groups = 1 + max(int(part.groups.max()) for part in parts)
    for kind, count in (("labels", classes), ("groups", groups)):
        if count > examples:
            raise UserError(
                f"{train}: {kind} should run from 0 without gaps, but the largest is {count - 1}."
            )
    names = _names(first, "class_names", classes)
    group_names = _names(first, "group_names", groups) if "groups" in first else ()
    return Dataset(train.stem, train.parent, *parts, names, group_names, "")


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
    names = [""] * len(source.labels)
    return Part(source.images, source.labels, groups.astype(np.int32), names)


def _names(arrays: dict[str, np.ndarray], key: str, count: int) -> tuple[str, ...]:
    return tuple(map(str, arrays[key].tolist())) if key in arrays else tuple(map(str, range(count)))
