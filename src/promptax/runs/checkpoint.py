"""Checkpoints: the trained leaves and what is needed to go on, verified before they are used.

Orbax writes the arrays. Beside them are a JSON record and, written last, a manifest with the
SHA-256 digest of every file. All of it goes into a draft folder that is renamed once it is
complete, so a kill at any moment leaves either a whole checkpoint or none. Nothing here runs code
from a file.

Orbax's `CheckpointManager` could keep the list of checkpoints, but it numbers them by one integer,
takes an empty or truncated folder for a checkpoint, and does not fall back to the one before. All
of that would still have to be written around it, so only Orbax's writer of arrays is used.
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
from pathlib import Path, PurePosixPath
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from promptax.core.distributed import on_writer
from promptax.core.errors import UserError
from promptax.core.files import (
    free_space,
    has_room_for_files,
    read_json,
    reason,
    require_open_files,
    sha256_of,
    sync,
)
from promptax.training.position import StreamPosition
from promptax.training.state import TrainState

FORMAT = 3
"""Version of the files of a checkpoint; format 1 (promptax 0.1) had no manifest, and format 2 kept
less of the state of a method."""
LOGGER = logging.getLogger("promptax")

# The parts of a checkpoint: Orbax's folder, the caller's record, and the digests of all files.
_STATE = "state"
_RECORD = "record.json"
_MANIFEST = "manifest.json"
# Endings of the names of folders that are not checkpoints, or not any more.
_DRAFT = ".draft"
_REMOVED = ".removed"
_DAMAGED = ".damaged"
_MARGIN = 2**20  # bytes for what is not in the arrays, here and elsewhere in the run folder
_FILES = 100  # files and folders of a checkpoint: some 30 if one process writes
OPEN_FILES = 32
"""Files that a run must be able to open besides those that are open at its start: 14 have been seen
to be enough. If Orbax cannot open its files, its threads print tracebacks or wait for ever."""
_KEPT_TASK_ENDS = 2  # so that `evaluate` can fall back to the one before


class NotSaved(UserError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files all have the digests that its manifest lists."""

    path: Path
    position: StreamPosition
    record: dict[str, Any]

    def state(self, like: TrainState) -> TrainState:
        """Read the state, in the shape and placement of `like`.

        Raises `UserError` that names the leaf where the checkpoint is of another model.
        """
        wanted = _to_dict(like)
        require_open_files(OPEN_FILES)
        try:
            return _from_dict(self._read(wanted), like)
        except UserError:
            raise
        except Exception as error:
            # Orbax lets through whatever its storage layers raise.
            message = f"checkpoint {self.path} cannot be read: {_storage_reason(error)}."
            raise UserError(message) from None

    def _read(self, wanted: dict[str, Array]) -> dict[str, Array]:
        folder = (self.path / _STATE).absolute()
        with ocp.StandardCheckpointer() as reader:
            self._check(dict(reader.metadata(folder).item_metadata.tree), wanted)
            return reader.restore(folder, jax.tree.map(_abstract, wanted))

    def _check(self, stored: dict[str, Any], wanted: dict[str, Array]) -> None:
        # Orbax itself casts another dtype silently, and does not name the leaf of another shape.
        for name in sorted({*stored, *wanted}):
            if name not in stored or name not in wanted:
                difference = "lacks" if name not in stored else "has a foreign"
                raise UserError(
                    f"checkpoint {self.path} {difference} leaf '{name}': another method?"
                )
            came = (tuple(stored[name].shape), np.dtype(stored[name].dtype))
            expected = (wanted[name].shape, np.dtype(wanted[name].dtype))
            if came != expected:
                raise UserError(
                    f"checkpoint {self.path}: '{name}' should be {expected}, but is {came}."
                )


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds the trainable leaves, the optimizer's state, the step, the key, and a JSON
    record of the caller's. Frozen leaves come from the weights file.
    """

    folder: Path
    keep: int = 2
    """How many of the newest are kept. The two newest at the end of a task always are, so that
    `evaluate` has another one to read where the newest is damaged."""
    keep_tasks: bool = False
    """Whether all checkpoints at the end of a task are kept, however many."""

    def save(self, position: StreamPosition, state: TrainState, record: dict[str, Any]) -> Path:
        """Write a checkpoint, and return its folder once it is complete on disk.

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
        """Find the newest checkpoint that is whole; None if there is none.

        A damaged one is named in a warning and passed over.

        Args:
            between: find the newest at the end of a task, for commands that only read a run.
                Nothing on the disk is changed then. Otherwise the caller goes on with the run,
                and damaged checkpoints are set aside under another name.

        Raises:
            UserError: all are damaged, or one is of another format.
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
                done = "passed over" if between else _set_aside(path)
                LOGGER.warning(f"checkpoint {path} is damaged ({damage}): {done}.")
        if between and positions:
            raise UserError(
                f"all checkpoints at the end of a task in {self.folder} are damaged: train on with "
                "resume=True, which falls back to what is left, or put a copy of one back."
            )
        set_aside = self.folder.is_dir() and any(self.folder.glob(f"*{_DAMAGED}*"))
        if set_aside and not self.positions():
            raise UserError(
                f"all checkpoints in {self.folder} are damaged and set aside: start again with "
                "overwrite=True, or put a copy of one back."
            )
        return None

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """State and record of the newest, as `newest` and `Checkpoint.state` find them."""
        checkpoint = self.newest()
        return checkpoint and (checkpoint.state(like), checkpoint.record)

    def positions(self) -> list[StreamPosition]:
        """Positions of all checkpoints in the folder, whole or not; the oldest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(position for name in names if (position := StreamPosition.of(name)))

    def _begin(self, draft: Path, size: int) -> None:
        with _writing(draft):
            self.folder.mkdir(exist_ok=True)
            self._remove_leftovers()
            draft.mkdir()
            # If the disk is full, Orbax's threads print tracebacks of their own.
            enough = free_space(draft) >= size + _MARGIN
            if not enough or not has_room_for_files(draft, _FILES):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _end(self, draft: Path, path: Path, record: dict[str, Any]) -> None:
        with _writing(draft):
            # Written plainly: the draft as a whole takes its place in one step.
            (draft / _RECORD).write_text(json.dumps(record), "utf-8")
            files = {str(file.relative_to(draft)): sha256_of(file) for file in _files(draft)}
            manifest = _signed({"format": FORMAT, "files": files})
            (draft / _MANIFEST).write_text(json.dumps(manifest), "utf-8")
            for file in (*_files(draft), draft):
                sync(file)
            if path.exists():
                _remove(path)
            draft.rename(path)
            sync(self.folder)
        self._prune()

    def _prune(self) -> None:
        positions = self.positions()
        ends = [at for at in positions if at.between]
        kept_ends = ends if self.keep_tasks else ends[-_KEPT_TASK_ENDS:]
        kept = {*positions[-self.keep :], *kept_ends}
        for position in set(positions) - kept:
            _remove(self.folder / str(position))

    def _remove_leftovers(self) -> None:
        """Remove what a kill has left half written or half deleted."""
        for path in self.folder.iterdir():
            if path.suffix in (_DRAFT, _REMOVED):
                _delete(path)


@contextmanager
def _writing(draft: Path) -> Iterator[None]:
    """Leave no draft behind that could not be written."""
    try:
        yield
    except Exception as error:
        # Orbax lets through whatever its storage layers raise on a full or lost disk.
        shutil.rmtree(draft, ignore_errors=True)
        path = draft.with_suffix("")
        message = f"checkpoint {path} cannot be written: {_storage_reason(error)}."
        raise NotSaved(message) from None


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


def _open(path: Path, position: StreamPosition) -> Checkpoint:
    """Verify a checkpoint and read its record; the arrays are read later.

    Raises `_Damaged` where a file differs from the manifest, and `UserError` where the whole is
    of another format.
    """
    _check_not_format_1(path)
    for name, digest in _manifest(path).items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise _Damaged(f"{_MANIFEST} names {name!a}, which is outside of the checkpoint")
        file = path / name
        if not file.exists():
            raise _Damaged(f"{name} is missing")
        if _checked(name, sha256_of, file) != digest:
            raise _Damaged(f"{name} has changed")
    record = _checked(_RECORD, read_json, path / _RECORD)
    if not isinstance(record, dict):
        raise _Damaged(f"{_RECORD} is no JSON object")
    return Checkpoint(path, position, record)


def _checked(name: str, read: Any, file: Path) -> Any:
    """Call `read` on a file of a checkpoint; whatever is wrong with the file is damage."""
    try:
        return read(file)
    except (UserError, OSError) as error:
        raise _Damaged(f"{name} cannot be read: {reason(error)}".rstrip(".")) from None


def _check_not_format_1(path: Path) -> None:
    # Format 1 had a folder of Orbax's in place of the record.
    if (path / "record").is_dir() and not (path / _MANIFEST).exists():
        raise UserError(
            f"checkpoint {path} has format 1, but this version reads {FORMAT}: finish the run "
            "with promptax 0.1, or start again with overwrite=True."
        )


def _manifest(path: Path) -> dict[str, str]:
    """Read which files a checkpoint should have, with their digests."""
    file = path / _MANIFEST
    if not path.is_dir():
        raise _Damaged("it is not a folder")
    if not os.path.lexists(file):
        raise _Damaged(f"{_MANIFEST} is missing")
    manifest = _checked(_MANIFEST, read_json, file)
    try:
        written = manifest["format"]
        files = dict(manifest["files"])
        contents = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = _signed(contents) == manifest
    except (ValueError, LookupError, TypeError, AttributeError):
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
    """Add a digest of the contents to them: a manifest cannot list its own file."""
    text = json.dumps(contents, sort_keys=True)
    return {**contents, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _set_aside(path: Path) -> str:
    """Rename, never delete: a person may want to look. Returns what was done."""
    names = (f"{path.name}{_DAMAGED}{number or ''}" for number in itertools.count())
    free = next(name for name in names if not os.path.lexists(path.with_name(name)))
    try:
        path.rename(path.with_name(free))
    except OSError as error:
        return f"passed over, and left in its place ({reason(error)})"
    return f"set aside as {free}"


def _remove(path: Path) -> None:
    """Delete, so that a kill in between leaves nothing that looks like a checkpoint."""
    removed = path.with_name(path.name + _REMOVED)
    path.rename(removed)
    _delete(removed)


def _delete(path: Path) -> None:
    """Delete a folder with all that is in it, or whatever a stranger has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _storage_reason(error: Exception) -> str:
    """Why Orbax could not read or write, without the many lines of its storage layer."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError | UserError):
        return reason(error).rstrip(".")
    return f"{type(error).__name__}: {reason(error)}"


def _to_dict(state: TrainState) -> dict[str, Array]:
    """The arrays of a state by their path in it; keys as their data, which Orbax can write."""
    leaves = jax.tree.leaves_with_path(eqx.filter(state, eqx.is_array))
    return {jax.tree_util.keystr(path): _data(leaf) for path, leaf in leaves}


def _from_dict(values: dict[str, Array], like: TrainState) -> TrainState:
    def fill(path: Any, leaf: Any) -> PyTree:
        if not eqx.is_array(leaf):
            return leaf
        value = values[jax.tree_util.keystr(path)]
        return jax.random.wrap_key_data(value) if _is_key(leaf) else value

    return jax.tree.map_with_path(fill, like)


def _data(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
