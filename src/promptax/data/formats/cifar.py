"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), as python or as binary files."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, find_tree, reading
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Pixels

BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar(AbstractFormat):
    """`cifar-10-python.tar.gz` and its relatives, or what they extract to; fine labels."""

    classes: Literal[10, 100] = 10

    def list(self, path: Path) -> Listing:
        """All examples in the order of the files."""
        kinds = ("python", "binary")
        tree = find_tree(path, *(f"cifar-{self.classes}-{kind}.tar.gz" for kind in kinds))
        train, test = (BATCHES, "test_batch") if self.classes == 10 else (("train",), "test")
        binary = tree.one(f"{train[0]}.bin") is not None
        read = self._binary if binary else self._pickled
        names = self._binary_names(tree) if binary else self._pickled_names(tree)
        with reading(tree.files[0]):
            return Listing(
                _joined([read(tree, file) for file in train], len(names), path),
                _joined([read(tree, test)], len(names), path),
                names,
                tree.files,
            )

    def _pickled(self, tree: AbstractTree, file: str):
        batch = _unpickle(tree.need(file))
        labels = batch[b"labels" if self.classes == 10 else b"fine_labels"]
        names = [name.decode("latin-1") for name in batch[b"filenames"]]
        return batch[b"data"].reshape(-1, PIXELS), np.asarray(labels, np.int32), names

    def _binary(self, tree: AbstractTree, file: str):
        heads = 1 if self.classes == 10 else 2  # Coarse and fine label.
        rows = np.frombuffer(tree.need(f"{file}.bin"), np.uint8).reshape(-1, heads + PIXELS)
        return rows[:, heads:], rows[:, heads - 1].astype(np.int32), [""] * len(rows)

    def _pickled_names(self, tree: AbstractTree) -> tuple[str, ...]:
        file, key = (
            ("batches.meta", b"label_names")
            if self.classes == 10
            else ("meta", b"fine_label_names")
        )
        with reading(tree.files[0]):
            return tuple(name.decode("ascii") for name in _unpickle(tree.need(file))[key])

    def _binary_names(self, tree: AbstractTree) -> tuple[str, ...]:
        file = "batches.meta.txt" if self.classes == 10 else "fine_label_names.txt"
        return tuple(tree.lines(file))


def _joined(batches: list, classes: int, path: Path) -> Listed:
    pixels, labels, names = zip(*batches, strict=True)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    label = np.concatenate(labels)
    if len(label) != len(images) or not len(label):
        raise UserError(f"'{path}' holds {len(images)} images and {len(label)} labels.")
    if label.min() < 0 or label.max() >= classes:
        raise UserError(f"'{path}' holds label {label.max()}, but there are {classes} classes.")
    return Listed(Pixels(images), label, [name for part in names for name in part])


def _unpickle(content: bytes) -> dict[bytes, Any]:
    loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    return {key.encode() if isinstance(key, str) else key: loaded[key] for key in loaded}


class _Array:
    """Takes the place of a uint8 array in a pickle; no code of NumPy is called."""

    def __setstate__(self, state):
        _, self.shape, _, _, self.raw = state

    def reshape(self, *shape: int) -> np.ndarray:
        return np.frombuffer(self.raw, np.uint8).reshape(*shape)


class _Dtype:
    """Takes the place of a dtype, of which CIFAR has one."""

    def __setstate__(self, state):
        pass


def _uint8(name, *_) -> _Dtype:
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError("an array that is not uint8")
    return _Dtype()


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _uint8,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
}
"""All that the pickles of CIFAR name; each is replaced by something that only keeps data."""


# The unpickler written in Python keeps its memo in a dict; the one in C makes an array of
# whatever size a damaged file asks for.
class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Reads lists, dicts, strings, numbers and uint8 arrays; refuses everything else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is no data: refused")
        return ALLOWED[module, name]
