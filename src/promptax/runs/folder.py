"""The folder of a run: settings, log, TensorBoard events, checkpoints, result and plots."""

import difflib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptax.core.distributed import is_writer, on_writer
from promptax.core.errors import UserError
from promptax.core.files import draft_of, file_lock, read_json, reason, write_json
from promptax.runs.checkpoint import LOGGER, Checkpoints

NAMED_BY_PLACE = ("data.dir", "data.train", "data.test", "backbone.weights")
"""Settings that say where something is: files may move, and are compared by digest."""
_LOCK = "lock"
_RUNS_NAMED = 3
"""Runs inside of a folder that an error names."""
_REPLACED = ("config.json", "learner.npz", "result.json")
"""Files that are written as a draft first."""
OWN_FILES = frozenset(
    {
        _LOCK,
        *_REPLACED,
        *(draft_of(Path(name)).name for name in _REPLACED),
        # Drafts of earlier versions.
        "config.tmp",
        "learner.tmp",
        "result.tmp",
        "log.txt",
        "tensorboard",
        "checkpoints",
        "checkpoints.removed",
        "accuracy_matrix.png",
        "accuracy.png",
    }
)
"""All that a run writes into its folder; overwriting it deletes nothing else."""


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run's folder, and how its files are read, written and locked."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings, written first."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """The accuracies and what they were measured with, rewritten after every task."""
        return self.path / "result.json"

    @property
    def learner(self) -> Path:
        """The learner of a run whose config cannot make it again; see `promptax.runs.given`."""
        return self.path / "learner.npz"

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints after every task, and between tasks if that is asked for."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def read(self, file: Path) -> dict[str, Any]:
        """Read a JSON file of the run. Raises `UserError` if it is missing or damaged."""
        if not self.config.is_file():
            raise UserError(
                f"'{self.path}' is not a run folder: it has no config.json.{self._near()}"
            )
        if not file.exists():
            raise UserError(f"'{file}' does not exist: has the run finished its first task?")
        content = read_json(file)
        if not isinstance(content, dict) or "schema" not in content:
            raise UserError(f"'{file}' is damaged: it has no schema.")
        return content

    def _near(self) -> str:
        """Which run the user may have meant: one inside of the folder, or one of a similar name."""
        inside = [path.parent for path in sorted(self.path.glob("*/config.json"))]
        if inside:
            shown = ", ".join(f"'{path}'" for path in inside[:_RUNS_NAMED])
            return f" It holds the runs {shown}{', ...' if len(inside) > _RUNS_NAMED else ''}."
        beside = [path.parent.name for path in self.path.parent.glob("*/config.json")]
        near = difflib.get_close_matches(self.path.name, beside, n=1)
        return f" Did you mean '{self.path.parent / near[0]}'?" if near else ""

    def readable(self, file: Path) -> bool:
        """Whether `read` can read a file of the run."""
        try:
            self.read(file)
        except UserError:
            return False
        return True

    def write(self, file: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run in one step, in the process that writes."""
        if is_writer():
            write_json(file, content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it until this one ends, in whatever way.

        A lock that a killed process left behind is taken over. Raises `UserError` that names the
        host and process id of another run in the folder.
        """
        if not is_writer():
            yield
            return
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                busy = f"run folder '{self.path}' is in use by"
                killed = held.enter_context(file_lock(self.path / _LOCK, busy))
            except OSError as error:
                raise self._unwritable(error) from None
            if killed:
                LOGGER.info(f"taking over the lock of {killed}, which was killed")
            yield

    def check(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Check that a run with these settings may go into the folder; nothing is changed.

        Args:
            config: the settings of the run, as JSON.
            resume: whether to go on with the run in the folder.
            overwrite: whether to delete the run in the folder.

        Raises:
            UserError: a run is there and neither `resume` nor `overwrite` is asked for; the run
                to resume has other settings (the first that differs is named); the folder
                holds something else, or lies inside the folder of another run.
        """
        on_writer(lambda: self._check(config, resume=resume, overwrite=overwrite))

    def _check(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise UserError("choose one of resume=True and overwrite=True.")
        try:
            self._check_outside_of_runs()
            if self.config.is_file() and resume:
                self._check_same(config)
            elif self.config.is_file() and not overwrite:
                raise UserError(
                    f"run folder '{self.path}' exists: go on with resume=True, start again with "
                    "overwrite=True, or choose another folder."
                )
            elif not self.config.is_file() and self._foreign():
                raise UserError(f"'{self.path}' is not empty and not a run folder: choose another.")
        except OSError as error:
            raise self._unwritable(error) from None

    def _check_outside_of_runs(self) -> None:
        """A run inside another would be taken for one of its files."""
        for folder in self.path.absolute().parents:
            if RunFolder(folder).is_run() and not self.is_run():
                raise UserError(
                    f"'{folder}' is a run, and the folder of a run cannot hold another one: choose "
                    "a folder beside it."
                )

    def is_run(self) -> bool:
        """Whether a run has begun in the folder."""
        if not self.config.is_file():
            return False
        try:
            settings = read_json(self.config)
        except UserError:
            return False
        return isinstance(settings, dict) and "schema" in settings and "method" in settings

    def is_finished(self) -> bool:
        """Whether all tasks of the run were trained. A damaged result counts as finished."""
        if not self.result.exists():
            return False
        try:
            result = read_json(self.result)
            return not result["tasks_done"] < len(result["accuracy_matrix"])
        except (UserError, LookupError, TypeError):
            return True

    def _foreign(self) -> bool:
        """Whether there is more than what a run leaves behind if it is killed while it makes the
        folder."""
        ours = {_LOCK, draft_of(self.config).name, "config.tmp"}
        return self.path.exists() and not {path.name for path in self.path.iterdir()} <= ours

    def create(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Begin a run in the folder, which must be locked, or accept the one to resume.

        The arguments are those of `check`. Raises `UserError` as `check` does, and where the
        folder cannot be written.
        """
        on_writer(lambda: self._create(config, resume=resume, overwrite=overwrite))

    def _create(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self._check(config, resume=resume, overwrite=overwrite)
        try:
            going_on = self.config.is_file() and resume
            if not going_on:
                self._clear()
            # The files of a run that goes on can be in other places than before.
            if not going_on or self.read(self.config) != as_read(config):
                self.write(self.config, config)
        except OSError as error:
            raise self._unwritable(error) from None

    def _clear(self) -> None:
        """Delete all files of the run except its settings, so that a kill leaves a run that can be
        overwritten. What the user put there stays."""
        removed = self.path / "checkpoints.removed"
        shutil.rmtree(removed, ignore_errors=True)
        checkpoints = self.checkpoints.folder
        if checkpoints.is_dir():
            # All at once: if only some of them were left, the run would seem to have come less far.
            checkpoints.rename(removed)
        for path in self.path.iterdir():
            if path.name in OWN_FILES - {_LOCK, self.config.name}:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"run folder '{self.path}' cannot be written: {reason(error)}.")

    def _check_same(self, config: Mapping[str, Any]) -> None:
        stored = self.read(self.config)
        wanted = as_read(config)
        for name, (old, new) in differences(stored, wanted):
            if name in NAMED_BY_PLACE:
                continue
            raise UserError(
                f"run folder '{self.path}' has other settings: {name} was {old}, now {new}. "
                "Resume with the same settings, or choose another folder."
            )


def as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file as it would be read back: tuples become lists."""
    return json.loads(json.dumps(content))


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Find the fields in which two JSON objects differ.

    Args:
        old: the first object; other values are compared as they are.
        new: the second object.
        name: the name of both; it comes before those of their fields.

    Yields:
        The name of each field that differs, such as `data.stream`, and its old and new value.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        # Names first: another method differs in its settings only because it is another method.
        for key in sorted({*old, *new}, key=lambda key: (key != "name", key)):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, (old, new)


def leaves_by_name(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by names such as `method.pool_size`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves_by_name(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
