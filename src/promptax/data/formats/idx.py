"""IDX files: MNIST (LeCun et al., 1998), Fashion-MNIST and other sets made like it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from promptax.core.errors import UserError
from promptax.data.archive import reading
from promptax.data.compressed import decompressed
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Pixels

IMAGE_AXES = 3
LABEL_AXES = 1
UNSIGNED_BYTE = 8
"""The code of this type in the header of an IDX file."""


@dataclass(frozen=True)
class Idx(AbstractFormat):
    """A folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same for `t10k`
    (or `.idx3` for `-idx3`), each of them compressed (`.gz`) or not. Images are grey."""

    def list(self, path: Path) -> Listing:
        """List all examples in the order of the files. Classes are named by their numbers."""
        train = _part(path, "train")
        test = _part(path, "t10k")
        count = 1 + int(np.concatenate([train.labels, test.labels]).max())
        files = [
            find(path, part) for part in ("train", "t10k") for find in (_images_file, _labels_file)
        ]
        return Listing(train, test, tuple(map(str, range(count))), tuple(files))


def _part(folder: Path, part: str) -> Listed:
    images = _read(_images_file(folder, part), IMAGE_AXES)
    labels = _read(_labels_file(folder, part), LABEL_AXES).astype(np.int32)
    if len(images) != len(labels) or not images.size:
        raise UserError(f"'{folder}': {len(images)} {part} images and {len(labels)} labels.")
    return Listed(Pixels(images[..., None]), labels, [""] * len(labels))


def _images_file(folder: Path, part: str) -> Path:
    return _find(folder, f"{part}-images", f"idx{IMAGE_AXES}-ubyte")


def _labels_file(folder: Path, part: str) -> Path:
    return _find(folder, f"{part}-labels", f"idx{LABEL_AXES}-ubyte")


def _find(folder: Path, stem: str, ending: str) -> Path:
    usual = f"{stem}-{ending}"
    for name in (usual, f"{stem}.{ending}", f"{usual}.gz", f"{stem}.{ending}.gz"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"'{folder}' should be a folder that holds '{usual}' or '{usual}.gz'.")


def _read(file: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    with reading(file), decompressed(file) as raw:
        if raw.read(4) != bytes([0, 0, UNSIGNED_BYTE, axes]):
            raise ValueError(f"expected an IDX file of bytes with {axes} axes")
        shape = np.frombuffer(raw.read(4 * axes), ">u4").astype(int).tolist()
        return np.frombuffer(raw.read(), np.uint8).reshape(shape)
