"""PyTorch's files (`.pth`, `.pt`, `.bin`): their tensors are read, and nothing in them is run."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.core.files import reason, require_file, sha256_of
from promptax.nn.weights.metadata import UNKNOWN, Metadata
from promptax.nn.weights.pickles import Damaged, Refused, Storage, TensorView, read_pickle
from promptax.nn.weights.safetensors import from_tensors
from promptax.nn.weights.vit import Weights

PICKLE_TO_SAFETENSORS = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], weights_only=True); "
    "d = d.get('teacher', d.get('model', d.get('state_dict', d))); "
    "s.save_file({k: v.clone() for k, v in d.items()}, sys.argv[2])"
)
"""A program that converts a pickle, for those who have torch: it takes two names of files."""
_MODELS = ("teacher", "model_ema", "model", "state_dict", "module")
"""Where a checkpoint has its tensors, the preferred place first: DINO and iBOT publish teachers."""
_MOST_PICKLE = 2**28
"""Bytes that the pickle of an archive may have; the tensors are in files of their own."""
_MOST_SHARING = 4
"""How many times larger than the file all tensors may be together: some share a storage."""
_CUT_OFF = (
    Damaged,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What is raised where a file is cut off, was changed, or is an archive that is encrypted."""
_ARCHIVE_START = b"PK"
_MAGIC = 0x1950A86A20F9469CFC6C
"""The number in the first pickle of a file from before PyTorch 1.6."""
_PICKLES_OF_VERSIONS = 2
"""Pickles between that one and the checkpoint's: of the version and of the machine."""

Load = Callable[[Storage], bytes]
"""The bytes of a storage."""


def read_torch(path: Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read a PyTorch file of a ViT's weights; the hints are as in `read_safetensors`.

    Raises `UserError` if the file is damaged, holds objects that are no weights, or another model.
    """
    return from_tensors(path, torch_tensors(path), sha256_of(path), hints)


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file by name.

    Of a checkpoint that holds several models, the one of its teacher is taken, or else the one that
    its code would load.

    Raises `UserError` if the file is damaged or holds objects that are no weights.
    """
    require_file(path, "weights")
    try:
        return _from_archive(path) if _is_archive(path) else _from_stream(path)
    except _CUT_OFF as error:
        raise UserError(
            f"weights '{path}' cannot be read as a PyTorch file ({reason(error)}): is it cut off, "
            "or another file?"
        ) from None
    except Refused as error:
        raise UserError(
            f"weights '{path}' are a PyTorch pickle of which only tensors are read: {error}. If "
            "you trust it, convert it where you have torch, with "
            f'python -c "{PICKLE_TO_SAFETENSORS}" {path.name} {path.stem}.safetensors'
        ) from None


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, or begins as one and is cut off."""
    with path.open("rb") as file:
        begins = file.read(len(_ARCHIVE_START)) == _ARCHIVE_START
    return begins or zipfile.is_zipfile(path)


def _from_archive(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as PyTorch has written it since version 1.6: a zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise Refused(f"the archive holds {len(pickles)} files data.pkl, expected 1")
        folder = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > _MOST_PICKLE:
            raise Refused("its pickle is too large")
        checkpoint = read_pickle(io.BytesIO(archive.read(pickles[0])))

        def load(storage: Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            if name not in members:
                raise Damaged(f"the archive lacks '{name}'")
            # A compressed member could be of any size; PyTorch compresses nothing.
            if members[name].compress_type != zipfile.ZIP_STORED:
                raise Refused(f"'{name}' is compressed")
            return archive.read(name)

        return _arrays(checkpoint, load, path.stat().st_size)


def _from_stream(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file from before PyTorch 1.6: five pickles, and the storages after them."""
    with path.open("rb") as file:
        if read_pickle(file) != _MAGIC:
            raise Refused("it is a pickle that PyTorch did not write")
        for _ in range(_PICKLES_OF_VERSIONS):
            read_pickle(file)
        checkpoint = read_pickle(file)
        keys = read_pickle(file)
        places = {}
        sizes = {storage.key: storage for storage in _storages(checkpoint)}
        is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not is_list or set(keys) != set(sizes):
            raise Damaged("its tensors and its storages differ")
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            length = sizes[key].size * sizes[key].dtype.itemsize
            if count != sizes[key].size:
                raise Damaged(f"the storage '{key}' has {count} values, expected {sizes[key].size}")
            places[key] = (file.tell(), length)
            file.seek(length, io.SEEK_CUR)

        def load(storage: Storage) -> bytes:
            start, length = places[storage.key]
            file.seek(start)
            return file.read(length)

        return _arrays(checkpoint, load, path.stat().st_size)


def _storages(value: Any) -> list[Storage]:
    """All storages in a checkpoint."""
    found = []
    pending = [value]
    seen = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, TensorView):
            found.append(value.storage)
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    return found


def _arrays(checkpoint: Any, load: Load, file_size: int) -> dict[str, np.ndarray]:
    """The tensors of the model in a checkpoint, from a file of so many bytes."""
    views = _model(checkpoint)
    size = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in views.values())
    if size > _MOST_SHARING * file_size:
        raise Refused(f"its tensors have {size} bytes, but the file has {file_size}")
    loaded: dict[str, bytes] = {}
    arrays = {}
    for name, view in views.items():
        storage = view.storage
        if storage.key not in loaded:
            loaded[storage.key] = load(storage)
        arrays[name] = _array(name, view, loaded[storage.key])
    return arrays


def _model(checkpoint: Any) -> Mapping[str, TensorView]:
    """The tensors by name, of the model that a checkpoint holds."""
    # Deeper than any published checkpoint; a dictionary can hold itself.
    for _ in range(4):
        if not isinstance(checkpoint, dict):
            break
        views = {
            str(name): value for name, value in checkpoint.items() if isinstance(value, TensorView)
        }
        inner = next((checkpoint[name] for name in _MODELS if name in checkpoint), None)
        if views and not isinstance(inner, dict):
            return views
        checkpoint = inner
    raise Refused("no tensors by name are in it")


def _array(name: str, view: TensorView, content: bytes) -> np.ndarray:
    """The values of a tensor; its description must fit its storage."""
    storage = view.storage
    if len(content) != storage.size * storage.dtype.itemsize:
        raise Damaged(f"the storage of '{name}' has {len(content)} bytes, which is too few or many")
    count = math.prod(view.shape)
    if len(view.shape) != len(view.strides) or count > storage.size:
        raise Refused(f"the tensor '{name}' is larger than its storage")
    last = view.offset + sum(
        stride * (size - 1) for stride, size in zip(view.strides, view.shape, strict=True)
    )
    if count and not 0 <= view.offset <= last < storage.size:
        raise Refused(f"the tensor '{name}' is larger than its storage")
    values = np.frombuffer(content, storage.dtype)
    if not count:
        return np.zeros(view.shape, storage.dtype)
    strides = tuple(stride * storage.dtype.itemsize for stride in view.strides)
    window = np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, strides)
    return np.array(window)
