"""Checkpoints: the trained leaves and what is needed to go on, verified before they are used.

Orbax writes the arrays. Beside them are a JSON record and, written last, a manifest with the
sha256 of every file. All of it goes into a draft that is renamed once it is complete, so a kill
at any moment leaves either a whole checkpoint or none. Nothing here runs code from a file.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from promptax.core.distributed import on_writer
from promptax.core.errors import UserError
from promptax.core.files import sha256_of, sync
from promptax.training.position import StreamPosition
from promptax.training.state import TrainState

FORMAT = 3
"""Version of what is written here; format 1 had no manifest, format 2 no state of methods."""
LOGGER = logging.getLogger("promptax")

_STATE, _RECORD, _MANIFEST = "state", "record.json", "manifest.json"
_MARGIN = 2**20  # bytes for what is not in the arrays, here and elsewhere in the run folder
_DRAFT, _REMOVED, _DAMAGED = ".draft", ".removed", ".damaged"


class NotSaved(UserError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole: every file is as the manifest says."""

    path: Path
    position: StreamPosition
    record: dict[str, Any]

    def state(self, like: TrainState) -> TrainState:
        """The state, in the shape and placement of `like`.

        Raises `UserError` that names the leaf where the checkpoint is of another model.
        """
        wanted = _to_dict(like)
        try:
            return _from_dict(self._read(wanted), like)
        except UserError:
            raise
        except Exception as error:
            # Orbax lets through whatever its storage layers raise.
            raise UserError(f"checkpoint {self.path} cannot be read: {_reason(error)}.") from None

    def _read(self, wanted: dict[str, Array]) -> dict[str, Array]:
        folder = (self.path / _STATE).absolute()
        with ocp.StandardCheckpointer() as reader:
            self._check(dict(reader.metadata(folder).item_metadata.tree), wanted)
            return reader.restore(folder, jax.tree.map(_abstract, wanted))

    def _check(self, stored: dict[str, Any], wanted: dict[str, Array]) -> None:
        for name in sorted({*stored, *wanted}):
            if name not in stored or name not in wanted:
                where = "lacks" if name not in stored else "has a foreign"
                raise UserError(f"checkpoint {self.path} {where} leaf '{name}': another method?")
            came = (tuple(stored[name].shape), np.dtype(stored[name].dtype))
            expected = (wanted[name].shape, np.dtype(wanted[name].dtype))
            if came != expected:
                raise UserError(
                    f"checkpoint {self.path}: '{name}' should be {expected}, but is {came}."
                )


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds the trainable leaves, the optimizer's state, step, key, and a JSON
    record of the caller's. Frozen leaves come from the weights file.
    """

    folder: Path
    keep: int = 2
    """So many of the newest are kept, and always the newest at the end of a task."""
    keep_tasks: bool = False
    """Keep those at the end of a task, however many."""

    def save(self, position: StreamPosition, state: TrainState, record: dict[str, Any]) -> Path:
        """Write, and return once it is complete on disk.

        Raises `NotSaved` where that fails; the checkpoints before it are left as they were.
        """
        path = self.folder / str(position)
        draft = path.with_name(path.name + _DRAFT)
        arrays = _to_dict(state)
        on_writer(lambda: self._begin(draft, sum(array.nbytes for array in arrays.values())))
        with _writing(draft), ocp.StandardCheckpointer() as writer:
            writer.save((draft / _STATE).absolute(), arrays)
        on_writer(lambda: self._end(draft, path, record))
        return path

    def newest(self, *, between: bool = False) -> Checkpoint | None:
        """The newest that is whole, or the newest between two tasks; None if there is none.

        A damaged one is named, set aside under another name, and passed over. Raises
        `UserError` if all are damaged, or if one is of another format.
        """
        found: list[Checkpoint | None] = []
        on_writer(lambda: found.append(self._newest(between)))
        return found[0] if found else self._newest(between)

    def _newest(self, between: bool) -> Checkpoint | None:
        positions = [at for at in self.positions() if at.between or not between]
        for position in reversed(positions):
            path = self.folder / str(position)
            try:
                return _open(path, position)
            except _Damaged as damage:
                LOGGER.warning(f"checkpoint {path} is damaged ({damage}): {_set_aside(path)}.")
        if list(self.folder.glob(f"*{_DAMAGED}*")) and not self.positions():
            raise UserError(
                f"all checkpoints in {self.folder} are damaged and set aside: start again with "
                "--overwrite, or put a copy of one back."
            )
        return None

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """State and record of the newest, as `newest` and `Checkpoint.state` find them."""
        checkpoint = self.newest()
        return checkpoint and (checkpoint.state(like), checkpoint.record)

    def positions(self) -> list[StreamPosition]:
        """Of all that are there, whole or not; the oldest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(position for name in names if (position := StreamPosition.of(name)))

    def _begin(self, draft: Path, size: int) -> None:
        with _writing(draft):
            self.folder.mkdir(exist_ok=True)
            self._tidy()
            draft.mkdir()
            _check_free(draft, size)

    def _end(self, draft: Path, path: Path, record: dict[str, Any]) -> None:
        with _writing(draft):
            (draft / _RECORD).write_text(json.dumps(record))
            files = {str(file.relative_to(draft)): sha256_of(file) for file in _files(draft)}
            (draft / _MANIFEST).write_text(json.dumps(_signed({"format": FORMAT, "files": files})))
            for file in (*_files(draft), draft):
                sync(file)
            self._commit(draft, path)
        self._prune()

    def _commit(self, draft: Path, path: Path) -> None:
        if path.is_dir():
            _remove(path)
        draft.rename(path)
        sync(self.folder)

    def _prune(self) -> None:
        positions = self.positions()
        ends = [at for at in positions if at.between]
        kept = {*positions[-self.keep :], *(ends if self.keep_tasks else ends[-1:])}
        for position in set(positions) - kept:
            _remove(self.folder / str(position))

    def _tidy(self) -> None:
        """Remove what a kill has left half written or half deleted."""
        for path in self.folder.iterdir():
            if path.suffix in (_DRAFT, _REMOVED):
                shutil.rmtree(path)


@contextmanager
def _writing(draft: Path) -> Iterator[None]:
    """Leave no draft behind that could not be written."""
    try:
        yield
    except Exception as error:
        # Orbax lets through whatever its storage layers raise on a full or lost disk.
        shutil.rmtree(draft, ignore_errors=True)
        path = draft.with_suffix("")
        raise NotSaved(f"checkpoint {path} cannot be written: {_reason(error)}.") from None


class _Damaged(Exception):
    """What is wrong with a checkpoint."""


def _open(path: Path, position: StreamPosition) -> Checkpoint:
    """Raises `_Damaged` where a file is not what the manifest says."""
    _check_format(path)
    for name, digest in _manifest(path).items():
        file = path / name
        if not file.is_file():
            raise _Damaged(f"{name} is missing")
        if sha256_of(file) != digest:
            raise _Damaged(f"{name} has changed")
    try:
        record = json.loads((path / _RECORD).read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise _Damaged(f"{_RECORD} is no JSON object")
    return Checkpoint(path, position, record)


def _check_format(path: Path) -> None:
    """Format 1 had a folder of Orbax's in place of the record."""
    if (path / "record").is_dir() and not (path / _MANIFEST).exists():
        raise UserError(
            f"checkpoint {path} has format 1, but this version reads {FORMAT}: finish the run "
            "with promptax 0.1, or start again with --overwrite."
        )


def _manifest(path: Path) -> dict[str, str]:
    """The files that there should be, and their digests."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        written, files = manifest["format"], dict(manifest["files"])
        contents = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = _signed(contents) == manifest
    except FileNotFoundError:
        raise _Damaged(f"{_MANIFEST} is missing") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Damaged(f"{_MANIFEST} is not JSON of ours") from None
    if not intact:
        raise _Damaged(f"{_MANIFEST} has changed")
    if written != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {written}, but this version reads "
            f"{FORMAT}: resume with the version of promptax that wrote it."
        )
    return files


def _signed(contents: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(contents, sort_keys=True)
    return {**contents, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _set_aside(path: Path) -> str:
    """Rename, never delete: a person may want to look. Returns what was done."""
    names = (f"{path.name}{_DAMAGED}{number or ''}" for number in itertools.count())
    free = next(name for name in names if not path.with_name(name).exists())
    try:
        path.rename(path.with_name(free))
    except OSError as error:
        return f"passed over, and left where it is ({error.strerror})"
    return f"set aside as {free}"


def _remove(path: Path) -> None:
    """Delete, so that a kill in between leaves nothing that looks like a checkpoint."""
    removed = path.with_name(path.name + _REMOVED)
    path.rename(removed)
    shutil.rmtree(removed)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _check_free(folder: Path, size: int) -> None:
    """Before Orbax starts: its threads, struck by a full disk, print tracebacks of their own."""
    if shutil.disk_usage(folder).free < size + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: " + str(error).split("\n")[0][:120]


def _to_dict(state: TrainState) -> dict[str, Array]:
    """The arrays of a state by their path in it; keys as their data, which Orbax can write."""
    leaves = jax.tree.leaves_with_path(eqx.filter(state, eqx.is_array))
    return {jax.tree_util.keystr(path): _data(leaf) for path, leaf in leaves}


def _from_dict(values: dict[str, Array], like: TrainState) -> TrainState:
    def fill(path: Any, leaf: Any) -> PyTree:
        if not eqx.is_array(leaf):
            return leaf
        value = values[jax.tree_util.keystr(path)]
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(value) if is_key else value

    return jax.tree.map_with_path(fill, like)


def _data(leaf: Array) -> Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
