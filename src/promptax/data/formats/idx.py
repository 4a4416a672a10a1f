"""IDX files: MNIST (LeCun et al., 1998), Fashion-MNIST and other sets made like it."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from promptax.core.errors import UserError
from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Pixels


@dataclass(frozen=True)
class Idx(AbstractFormat):
    """A folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same for
    `t10k` (`.idx3` will do), each as it is or with `.gz`. Grey images keep their one channel."""

    def list(self, path: Path) -> Listing:
        """All examples in the order of the files. Classes are called by their numbers."""
        train, test = _part(path, "train"), _part(path, "t10k")
        labels = np.concatenate([train.labels, test.labels])
        files = tuple(_find(path, *name) for name in NAMES)
        return Listing(train, test, tuple(str(c) for c in range(int(labels.max()) + 1)), files)


NAMES = [(part, *kind) for part in ("train", "t10k") for kind in (("images", 3), ("labels", 1))]


def _part(folder: Path, part: str) -> Listed:
    images = _read(_find(folder, part, "images", 3), 3)
    labels = _read(_find(folder, part, "labels", 1), 1).astype(np.int32)
    if len(images) != len(labels) or not images.size:
        raise UserError(f"'{folder}': {len(images)} {part} images and {len(labels)} labels.")
    return Listed(Pixels(images[..., None]), labels, [""] * len(labels))


def _find(folder: Path, part: str, kind: str, axes: int) -> Path:
    names = [
        f"{part}-{kind}{mark}idx{axes}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"'{folder}' should be a folder that holds '{names[0]}' or '{names[2]}'.")


def _read(file: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    with reading(file), file.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content = gzip.GzipFile(fileobj=raw).read() if zipped else raw.read()
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError(f"expected an IDX file of bytes with {axes} axes")
        start = 4 + 4 * axes
        shape = np.frombuffer(content[4:start], ">u4").astype(int).tolist()
        return np.frombuffer(content[start:], np.uint8).reshape(shape)
