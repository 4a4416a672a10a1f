"""The folder of a run: settings, log, TensorBoard events, checkpoints, result and plots."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptax.checkpoint import Checkpoints
from promptax.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Where things are in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings, written first."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """The figures, rewritten after every task."""
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Checkpoints:
        """After every task."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    def read(self, file: Path) -> dict[str, Any]:
        """A JSON file of the run. Raises `UserError` if it is missing or damaged."""
        if not self.config.is_file():
            raise UserError(f"'{self.path}' is not a run folder: it has no config.json.")
        if not file.is_file():
            raise UserError(f"'{file}' does not exist: has the run finished its first task?")
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"'{file}' is damaged: {error}.") from None
        if not isinstance(content, dict) or "schema" not in content:
            raise UserError(f"'{file}' is damaged: it has no schema.")
        return content

    def write(self, file: Path, content: Mapping[str, Any]) -> None:
        """Write JSON, so that a reader sees the old file or the new one, never half of it."""
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        draft.replace(file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the lock goes with the process, however it ends.

        Raises `UserError` with the other's host and process id.
        """
        try:
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise self._unwritable(error) from None
        with file as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(f"run folder '{self.path}' is in use by {holder}.") from None
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    def check(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Whether a run with these settings may go into the folder; nothing is changed.

        Raises `UserError` where a run is there and neither `resume` nor `overwrite` is asked
        for, and where a run to resume has other settings (naming the first that differs).
        """
        if resume and overwrite:
            raise UserError("choose one of --resume and --overwrite.")
        try:
            taken = self.path.exists() and any(self.path.iterdir())
            if self.config.is_file() and resume:
                self._check_same(config)
            elif taken and not self.config.is_file():
                raise UserError(f"'{self.path}' is not empty and not a run folder: choose another.")
            elif taken and not overwrite:
                raise UserError(
                    f"run folder '{self.path}' exists: go on with --resume, start again with "
                    "--overwrite, or choose another with --run."
                )
        except OSError as error:
            raise self._unwritable(error) from None

    def create(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make the folder, or accept the one that is there.

        Raises `UserError` as `check` does, and where the folder cannot be written.
        """
        self.check(config, resume=resume, overwrite=overwrite)
        try:
            if self.config.is_file() and resume:
                return
            if self.config.is_file():
                with self.locked():
                    shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self.write(self.config, config)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"run folder '{self.path}' cannot be written: {error.strerror}.")

    def _check_same(self, config: Mapping[str, Any]) -> None:
        stored = self.read(self.config)
        for name, (old, new) in sorted(_differences(stored, json.loads(json.dumps(config)))):
            if name in _PLACES:
                continue
            raise UserError(
                f"run folder '{self.path}' has other settings: {name} was {old}, now {new}. "
                "Resume with the same settings, or choose another folder."
            )


# Where things are may change; what they hold is compared by digest.
_PLACES = ("data.dir",)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, (old, new)
