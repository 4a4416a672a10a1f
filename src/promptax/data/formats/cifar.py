"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in their Python or their binary version."""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int32, UInt8

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, find_tree, reading
from promptax.data.formats.format import Listed, Listing, Pixels
from promptax.data.formats.lists import AbstractNamedFormat

BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
"""The training files of CIFAR-10; CIFAR-100 has a single one."""
SIDE = 32
"""Height and width of an image."""
CHANNELS = 3
VALUES = CHANNELS * SIDE * SIDE
"""Bytes of an image, one channel after another."""
MOST_STEPS = 1_000_000
"""Most instructions of a pickle, each of which can make an object. CIFAR-100's has 200,000."""

Batch = tuple[UInt8[np.ndarray, "examples values"], Int32[np.ndarray, " examples"], list[str]]
"""Pixels, labels and file names of one file."""


@dataclass(frozen=True)
class Cifar(AbstractNamedFormat):
    """`cifar-10-python.tar.gz`, `cifar-100-python.tar.gz` or their `binary` versions, as archives
    or extracted. The labels of CIFAR-100 are the fine ones."""

    classes: Literal[10, 100] = 10
    """Number of classes, which tells CIFAR-10 from CIFAR-100."""

    def list(self, path: Path) -> Listing:
        """List all examples in the order of the files."""
        archives = [f"cifar-{self.classes}-{kind}.tar.gz" for kind in ("python", "binary")]
        tree = find_tree(path, *archives)
        train = BATCHES if self.classes == 10 else ("train",)
        test = "test_batch" if self.classes == 10 else "test"
        is_binary = tree.one(f"{train[0]}.bin") is not None
        read = self._binary if is_binary else self._pickled
        names = self._binary_names(tree) if is_binary else self._pickled_names(tree)
        with reading(tree.files[0]):
            listing = Listing(
                _joined([read(tree, file) for file in train], len(names), path),
                _joined([read(tree, test)], len(names), path),
                names,
                tree.files,
            )
        return self.divided(listing)

    def _pickled(self, tree: AbstractTree, file: str) -> Batch:
        batch = _unpickle(tree.need(file))
        labels = batch[b"labels" if self.classes == 10 else b"fine_labels"]
        names = [name.decode("latin-1") for name in batch[b"filenames"]]
        return batch[b"data"].reshape(-1, VALUES), np.asarray(labels, np.int32), names

    def _binary(self, tree: AbstractTree, file: str) -> Batch:
        # A row is the labels (in CIFAR-100 the coarse and the fine one), and then the pixels.
        label_count = 1 if self.classes == 10 else 2
        content = np.frombuffer(tree.need(f"{file}.bin"), np.uint8)
        rows = content.reshape(-1, label_count + VALUES)
        labels = rows[:, label_count - 1].astype(np.int32)
        return rows[:, label_count:], labels, [""] * len(rows)

    def _pickled_names(self, tree: AbstractTree) -> tuple[str, ...]:
        file = "batches.meta" if self.classes == 10 else "meta"
        key = b"label_names" if self.classes == 10 else b"fine_label_names"
        with reading(tree.files[0]):
            return tuple(name.decode("ascii") for name in _unpickle(tree.need(file))[key])

    def _binary_names(self, tree: AbstractTree) -> tuple[str, ...]:
        file = "batches.meta.txt" if self.classes == 10 else "fine_label_names.txt"
        return tuple(tree.lines(file))


def _joined(batches: Sequence[Batch], classes: int, path: Path) -> Listed:
    pixels, labels, names = zip(*batches, strict=True)
    images = np.concatenate(pixels).reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    label = np.concatenate(labels)
    if len(label) != len(images) or not len(label):
        raise UserError(f"'{path}' holds {len(images)} images and {len(label)} labels.")
    if label.min() < 0 or label.max() >= classes:
        raise UserError(f"'{path}' holds label {label.max()}, but there are {classes} classes.")
    return Listed(Pixels(images), label, [name for part in names for name in part])


def _unpickle(content: bytes) -> dict[bytes, Any]:
    loaded = _Unpickler(content).load()
    return {key.encode() if isinstance(key, str) else key: loaded[key] for key in loaded}


class _Array:
    """Stands in for a uint8 array in a pickle, so that no code of NumPy is called."""

    def __setstate__(self, state):
        _, self.shape, _, _, self.raw = state

    def reshape(self, *shape: int) -> np.ndarray:
        return np.frombuffer(self.raw, np.uint8).reshape(*shape)


class _Dtype:
    """Stands in for a dtype in a pickle. CIFAR has only one, uint8."""

    def __setstate__(self, state):
        pass


def _uint8(name, *_) -> _Dtype:
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError("an array that is not uint8")
    return _Dtype()


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin-1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _uint8,
    ("_codecs", "encode"): _encode,
}
"""Every function and class that the pickles of CIFAR name, and its harmless replacement."""


def _counted(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction of pickles, of which only so many are carried out."""

    def step(unpickler: Any) -> None:
        unpickler.steps += 1
        if unpickler.steps > MOST_STEPS:
            raise pickle.UnpicklingError(f"a pickle of more than {MOST_STEPS} instructions")
        instruction(unpickler)

    return step


# The unpickler written in Python keeps the objects that it has read in a dict. The one in C keeps
# them in an array, whose size a damaged file can make as large as it likes.
class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Reads lists, dicts, strings, numbers and uint8 arrays, and refuses everything else.

    A pickle is a program: a byte of it can make an object of hundreds of bytes, or copy a text
    again. So its instructions are counted, and so are the characters that it encodes.
    """

    dispatch: ClassVar[Any] = {
        code: _counted(instruction)
        for code, instruction in pickle._Unpickler.dispatch.items()  # pyright: ignore[reportAttributeAccessIssue]
    }

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.steps = 0
        self._left = len(content)  # characters that may be encoded: no more than were read

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is not data: refused")
        found = ALLOWED[module, name]
        return self._encode_once if found is _encode else found

    def _encode_once(self, text: str, encoding: str) -> bytes:
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("a pickle that encodes the same text again")
        return _encode(text, encoding)
