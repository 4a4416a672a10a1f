"""Train, evaluate and load runs: the commands of the command line as functions."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from promptax.core.distributed import is_writer, on_writer
from promptax.core.errors import UserError
from promptax.core.interrupt import Interrupts, deferred_interrupts
from promptax.core.settings import Protocol, Saving
from promptax.core.sharding import make_mesh
from promptax.methods.base import AbstractMethod
from promptax.runs.checkpoint import Checkpoints, NotSaved
from promptax.runs.experiment import Experiment, Session, outcome
from promptax.runs.folder import RunFolder, differences
from promptax.runs.monitor import LOGGER, Monitor
from promptax.runs.provenance import digest
from promptax.training.compiles import Compiles, count_compiles
from promptax.training.evaluate import Evaluation, MeasureBatch
from promptax.training.learner import Learner
from promptax.training.loop import (
    NonFinite,
    StepDone,
    TaskEnded,
    check_finite,
    empty_matrices,
    make_learner,
    run_stream,
)
from promptax.training.metrics import AccuracyMatrix
from promptax.training.position import START, StreamPosition
from promptax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """The content of a checkpoint: the state, and what was measured and spent so far."""

    state: TrainState
    matrices: dict[str, AccuracyMatrix]
    position: StreamPosition = START
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiles: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of compilations of each step, in the process that had the most."""
    prompt_usage: list[list[int]] = dataclasses.field(default_factory=list)
    """`[tasks, prompts]`: how often a prompt was given to the test images of a task."""

    @classmethod
    def read(cls, session: Session, folder: RunFolder, *, between: bool = False) -> "Progress":
        """Read the newest checkpoint, or start from the beginning if there is none.

        Args:
            session: The experiment, loaded.
            folder: Its run folder.
            between: Only take checkpoints between two tasks.

        Raises:
            UserError: The checkpoint belongs to another method, seed, image size, stream or
                weights.
        """
        checkpoint = folder.checkpoints.newest(between=between)
        if checkpoint is None:
            return cls(session.state, empty_matrices(session.evaluator))
        record = dict(checkpoint.record)
        for name, (old, new) in differences(record.pop("identity", None), _identity(session)):
            raise UserError(
                f"checkpoint {checkpoint.path} is of another run: {name} was {old}, now {new}."
            )
        try:
            progress = cls._from_record(record, session.state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {checkpoint.path} has a record that is not of this version "
                f"({type(error).__name__} {error})."
            ) from None
        return dataclasses.replace(progress, state=checkpoint.state(session.state))

    @classmethod
    def _from_record(cls, record: dict[str, Any], state: TrainState) -> "Progress":
        stored = record.pop("matrices").items()
        matrices = {name: AccuracyMatrix(np.asarray(rows, float)) for name, rows in stored}
        return cls(state, matrices, StreamPosition(*record.pop("position")), **record)

    def record(self) -> dict[str, Any]:
        """Everything but the state, as JSON."""
        matrices = {name: matrix.values.tolist() for name, matrix in self.matrices.items()}
        own = ("state", "matrices", "position")
        others = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own
        }
        position = dataclasses.astuple(self.position)
        return {"matrices": matrices, "position": position, **others}

    def timing(self, images: int) -> dict[str, float]:
        """The times of a result, in seconds; compilation counts in neither of the other two."""
        return {
            "compile": self.compile_seconds,
            "train": self.train_seconds,
            "evaluate": self.evaluate_seconds,
            "images_per_second": images / max(self.train_seconds, 1e-9),
        }


def train(
    experiment: Experiment,
    path: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    saving: Saving | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Train an experiment into a run folder, and return its result.

    SIGINT and SIGTERM end the run with a checkpoint after the current step, or after the current
    batch of an evaluation. Allow for the time of one step (the first one compiles) and of one
    checkpoint. A second signal ends the run at once and loses what came after the last checkpoint;
    so does the first one if several processes train together.

    Args:
        experiment: All that determines the numbers.
        path: The run folder.
        resume: Go on from the last checkpoint in the folder.
        overwrite: Delete the run in the folder first.
        saving: Which checkpoints to write and keep.
        mesh: The devices; all that there are if None.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: Something does not fit together (before anything is written), the loss is not
            finite, or the disk cannot be written; the last checkpoint is named.
        KeyboardInterrupt: A signal came.
    """
    began = time.monotonic()
    with deferred_interrupts("saving after this step, then stopping") as interrupts:
        session = Session(experiment, mesh or make_mesh())
        folder = RunFolder(path)
        interrupts.check()
        folder.check(experiment.to_json(), resume=resume, overwrite=overwrite)
        with folder.locked():
            folder.create(experiment.to_json(), resume=resume, overwrite=overwrite)
            with _explained(folder), _log_to(folder.path / "log.txt"):
                _train(session, folder, saving or Saving(), interrupts, began)
                result = folder.read(folder.result)
                from promptax.runs.plot import save_run_plots  # matplotlib imports slower than JAX

                on_writer(lambda: save_run_plots(result, folder.path))
        interrupts.check()
    return result


def _train(
    session: Session, folder: RunFolder, saving: Saving, interrupts: Interrupts, began: float
) -> None:
    """Drive the generator of events, and do what each asks for.

    Args:
        session: The experiment, loaded.
        folder: The run folder, locked.
        saving: Which checkpoints to write.
        interrupts: Signals that came so far.
        began: When the command began, by `time.monotonic`.
    """
    progress = Progress.read(session, folder)
    if progress.position > START:
        LOGGER.info(f"resuming {_described(progress.position)}")
    if progress.position.tasks and not folder.readable(folder.result):
        folder.write(folder.result, _result(session, progress))
    events = run_stream(
        session.evaluator,
        progress.state,
        progress.matrices,
        seed=session.experiment.seed,
        start=progress.position,
    )
    trainer = session.evaluator.trainer
    watch = Monitor(
        folder.tensorboard,
        batch_size=trainer.recipe.schedule.batch_size,
        steps=[trainer.steps(len(task.index)) for task in session.stream.tasks],
        start=progress.position,
        began=began,
    )
    with count_compiles() as compiles, watch as monitor:
        recorder = Recorder(session, folder, saving, monitor, compiles, interrupts, progress)
        for event in events:
            if isinstance(event, StepDone):
                recorder.step_done(event)
            elif isinstance(event, MeasureBatch):
                recorder.measuring(event)
            elif isinstance(event, TaskEnded):
                recorder.task_ended(event)
            interrupts.check()


@dataclasses.dataclass
class Recorder:
    """Writes what a run has reached into its folder: checkpoints, result and events."""

    session: Session
    folder: RunFolder
    saving: Saving
    monitor: Monitor
    compiles: Compiles
    interrupts: Interrupts
    progress: Progress
    """As of the last end of a task in this process, or as it was read."""

    def __post_init__(self):
        self.checkpoints = Checkpoints(
            self.folder.checkpoints.folder,
            keep=self.saving.keep_checkpoints,
            keep_tasks=self.saving.keep_tasks,
        )
        self.identity = _identity(self.session)
        self.step = self.progress.position.step
        self.began = time.monotonic()

    @property
    def _is_stopping(self) -> bool:
        """Whether to save because of a signal. With several processes it comes to them at different
        steps, and they can only save together."""
        return self.interrupts.pending and jax.process_count() == 1

    def step_done(self, event: StepDone) -> None:
        """Report a step, and save if it is time to or the run is about to stop."""
        self.step += 1
        self.monitor.on_step(event.state, event.metrics)
        every = self.saving.checkpoint_every
        if self._is_stopping or (every is not None and self.step % every == 0):
            self._save_within(event.state, trained=False)

    def measuring(self, event: MeasureBatch) -> None:
        """Save a task that was trained and not measured, if the run is about to stop."""
        if self._is_stopping:
            self._save_within(event.state, trained=True)

    def task_ended(self, ended: TaskEnded) -> None:
        """Report and save the end of a task.

        A kill between two of these writes costs nothing: the next process writes them again.
        """
        self.progress = _advance(self.session, self.progress, ended, self.compiles)
        self.monitor.on_task(ended)
        result = _result(self.session, self.progress, self.monitor.first_step)
        self.folder.write(self.folder.result, result)
        self._save(self.progress)
        self.step = 0
        self.began = time.monotonic()

    def _save_within(self, state: TrainState, *, trained: bool) -> None:
        before = self.progress
        tasks = before.position.tasks
        check_finite(self.session.evaluator.trainer, state, tasks)
        self.monitor.flush()
        spent = self.compiles.seconds
        elapsed = time.monotonic() - self.began - _compiling(self.session, spent)[0]
        progress = dataclasses.replace(
            before,
            state=state,
            position=StreamPosition(tasks, self.step, trained),
            train_seconds=before.train_seconds + elapsed,
            compile_seconds=before.compile_seconds + sum(spent.values()),
            compiles=_most(before.compiles, self.compiles),
        )
        self._save(progress)

    def _save(self, progress: Progress) -> None:
        record = {"identity": self.identity, **progress.record()}
        self.checkpoints.save(progress.position, progress.state, record)


def evaluate(
    path: Path,
    protocol: Protocol,
    *,
    method: type[AbstractMethod] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Session, Evaluation]:
    """Measure a run, as of its last finished task, under another protocol.

    Args:
        path: Folder of the run.
        protocol: How to measure.
        method: The class of the run's method, if it is not part of the package.
        mesh: The devices; all that there are if None.

    Raises:
        UserError: There is no run, none of its tasks is finished, or its method is not known.
    """
    session, progress = _open(path, method, protocol, mesh)
    return session, session.evaluator(progress.state, progress.position.tasks - 1)


def load(path: str | Path, *, method: type[AbstractMethod] | None = None) -> Learner:
    """Load the learner of a run after its last finished task: `learner(images)` gives logits.

    Args:
        path: Folder of the run.
        method: The class of the run's method, if it is not part of the package. Opening a run
            never executes code that its folder names.

    Raises:
        UserError: There is no run, none of its tasks is finished, its method is not known, or its
            weights or data are no longer what they were.
    """
    session, progress = _open(Path(path), method)
    return make_learner(session.evaluator, progress.state, progress.position.tasks - 1)


def _open(
    path: Path,
    method: type[AbstractMethod] | None,
    protocol: Protocol | None = None,
    mesh: Mesh | None = None,
) -> tuple[Session, Progress]:
    folder = RunFolder(path)
    experiment = _experiment(folder, method)
    if protocol is not None:
        recipe = dataclasses.replace(experiment.recipe, protocol=protocol)
        experiment = dataclasses.replace(experiment, recipe=recipe)
    session = Session(experiment, mesh or make_mesh())
    progress = Progress.read(session, folder, between=True)
    if not progress.position.tasks:
        raise UserError(f"run '{path}' has not finished its first task: go on with --resume.")
    return session, progress


def _experiment(folder: RunFolder, method: type[AbstractMethod] | None) -> Experiment:
    stored = folder.read(folder.config)
    try:
        return Experiment.from_json(stored, method=method)
    except UserError as error:
        raise UserError(f"'{folder.config}': {error}") from None


def _identity(session: Session) -> dict[str, Any]:
    """The settings that must be the same for a checkpoint to make sense: prompts that were trained on other
    weights, for example, would be noise."""
    facts = session.facts()
    experiment = session.experiment
    settings = experiment.to_json()
    return {
        "method": settings["method"],
        "replay": settings["replay"],
        "joint": experiment.data.joint,
        "seed": experiment.seed,
        "images": {"size": experiment.recipe.images.size},
        **{part: {"sha256": facts[part]["sha256"]} for part in ("weights", "stream")},
    }


def _described(position: StreamPosition) -> str:
    if position.between:
        return f"after {position.tasks} tasks"
    measured = ", trained and not measured" if position.trained else ""
    return f"{position.step} steps into task {position.tasks + 1}{measured}"


@contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """Add to the error of a run that cannot go on which checkpoint is left."""
    try:
        yield
    except (NonFinite, NotSaved) as error:
        raise UserError(f"{error} {_kept(folder)}") from None
    except OSError as error:
        where = error.filename or folder.path
        raise UserError(f"'{where}': {error.strerror or error}. {_kept(folder)}") from None


def _kept(folder: RunFolder) -> str:
    checkpoints = folder.checkpoints
    positions = checkpoints.positions()
    if not positions:
        return "There is no checkpoint of the run."
    last = checkpoints.folder / str(positions[-1])
    return f"The last checkpoint is {last}: go on with --resume."


def _compiling(session: Session, spent: dict[str, float]) -> tuple[float, float]:
    """Seconds of compilation that fell into training, and into evaluation."""
    training = spent["train"] + spent["review"] + spent["observe"]
    evaluation = spent["evaluate"]
    if session.evaluator.trainer.keeps_queries:
        return training + spent["query"], evaluation
    return training, evaluation + spent["query"]


def _advance(
    session: Session, progress: Progress, ended: TaskEnded, compiles: Compiles
) -> Progress:
    """The progress after one more task, without the time that compilation took of it."""
    spent = compiles.take_seconds()
    training, evaluation = _compiling(session, spent)
    usage = progress.prompt_usage if ended.evaluation is None else _usage(ended.evaluation)
    return Progress(
        state=ended.state,
        matrices=ended.matrices,
        position=StreamPosition(ended.task_number + 1),
        train_seconds=progress.train_seconds + ended.train_seconds - training,
        evaluate_seconds=progress.evaluate_seconds + ended.evaluate_seconds - evaluation,
        compile_seconds=progress.compile_seconds + sum(spent.values()),
        compiles=_most(progress.compiles, compiles),
        prompt_usage=usage,
    )


def _most(before: dict[str, int], now: Compiles) -> dict[str, int]:
    names = ("train", "review", "observe", "evaluate", "query")
    most = {name: max(before.get(name, 0), now.count[name]) for name in names}
    return {name: count for name, count in most.items() if count}


def _result(
    session: Session, progress: Progress, first_step: float | None = None
) -> dict[str, Any]:
    tasks = progress.position.tasks
    trainer = session.evaluator.trainer
    examples = sum(len(task.index) for task in session.stream.tasks[:tasks])
    epochs = trainer.recipe.schedule.epochs if trainer.takes_steps else 0
    passes = epochs + (trainer.method.observe is not None)
    timing = progress.timing(examples * passes)
    return {
        **session.facts(),
        **outcome(progress.matrices, tasks),
        "trained_sha256": digest((progress.state.params, progress.state.method_state)),
        "compiles": progress.compiles,
        "skipped_steps": int(progress.state.faults.count),
        "prompt_usage": progress.prompt_usage,
        "timing": {**timing, "first_step": first_step},
    }


def _usage(evaluation: Evaluation) -> list[list[int]]:
    """How often each prompt was given to the test images of each task; empty without prompts."""
    prompts = 1 + max((int(ids.max(initial=-1)) for ids in evaluation.selected), default=-1)
    counts = [np.bincount(ids.ravel(), minlength=prompts) for ids in evaluation.selected]
    return [count.tolist() for count in counts] if prompts else []


class _LogFile(logging.FileHandler):
    """A log that fails as every other file does; `logging` would print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path) if is_writer() else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
