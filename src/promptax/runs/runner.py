"""Train, evaluate and load runs: the commands of the command line as functions."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from promptax.core.distributed import is_writer, on_writer, to_host
from promptax.core.errors import UserError
from promptax.core.files import require_file, require_open_files
from promptax.core.interrupt import Interrupts, deferred_interrupts
from promptax.core.settings import Saving
from promptax.core.sharding import make_mesh
from promptax.runs.checkpoint import OPEN_FILES, Checkpoints, NotSaved
from promptax.runs.experiment import Experiment, Session
from promptax.runs.extend import grown
from promptax.runs.folder import RunFolder
from promptax.runs.inputs import Found
from promptax.runs.monitor import LOGGER, Monitor
from promptax.runs.notices import notices
from promptax.runs.progress import (
    Progress,
    advanced,
    compile_seconds_of,
    identity_of,
    most_compiles,
    outline_of,
    result_of,
)
from promptax.training.arguments import warn_of_few_steps
from promptax.training.callbacks import Callback, notify
from promptax.training.compiles import Compiles, count_compiles
from promptax.training.evaluate import MeasureBatch
from promptax.training.finite import NonFinite, check_steps
from promptax.training.loop import StepDone, TaskEnded, make_learner, run_stream
from promptax.training.position import START, StreamPosition
from promptax.training.saved import check_savable
from promptax.training.state import TrainState


def train(
    experiment: Experiment,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    saving: Saving | None = None,
    mesh: Mesh | None = None,
    found: Found | None = None,
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
        found: Where the weights are now, if not where the experiment says.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: Something does not fit together (before anything is written), the loss is not
            finite, or the disk cannot be written; the last checkpoint is named.
        KeyboardInterrupt: A signal came.
    """
    run_experiment(
        experiment,
        path,
        resume=resume,
        overwrite=overwrite,
        saving=saving,
        mesh=mesh,
        found=found,
    )
    folder = RunFolder(Path(path))
    return folder.read(folder.result)


def run_experiment(
    experiment: Experiment,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    saving: Saving | None = None,
    mesh: Mesh | None = None,
    found: Found | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> tuple[Session, Progress]:
    """Train as `train` does, and return the trained state.

    Args:
        experiment: All that determines the numbers.
        path: The run folder.
        resume: Go on from the last checkpoint in the folder.
        overwrite: Delete the run in the folder first.
        saving: Which checkpoints to write and keep.
        mesh: The devices; all that there are if None.
        found: Where the weights are now, if not where the experiment says.
        callbacks: Told of the steps and tasks that are trained, after the folder has them. If
            None, a progress bar is shown on a terminal.

    Raises:
        UserError: As `train` does.
        KeyboardInterrupt: A signal came.
    """
    began = time.monotonic()
    require_open_files(OPEN_FILES)
    with deferred_interrupts("saving after this step, then stopping") as interrupts:
        session = Session(experiment, mesh or make_mesh(), found)
        folder = RunFolder(Path(path))
        interrupts.check()
        folder.check(experiment.to_json(), resume=resume, overwrite=overwrite)
        with folder.locked():
            folder.create(experiment.to_json(), resume=resume, overwrite=overwrite)
            with _explained(folder), _log_to(folder.path / "log.txt"):
                for notice in notices(session):
                    LOGGER.info(notice)
                if experiment.extends is not None and not folder.checkpoints.positions():
                    _begin_extension(session, folder)
                progress = _train(session, folder, saving or Saving(), interrupts, began, callbacks)
                result = folder.read(folder.result)
                from promptax.runs.plot import save_run_plots  # matplotlib imports slower than JAX

                on_writer(lambda: save_run_plots(result, folder.path))
        interrupts.check()
    return session, progress


def _begin_extension(session: Session, folder: RunFolder) -> None:
    """Write the first checkpoint of an extended run: what was learned before, grown."""
    progress = grown(session)
    record = {"identity": identity_of(session), "outline": outline_of(session)}
    folder.checkpoints.save(progress.position, progress.state, {**record, **progress.record()})
    LOGGER.info(f"going on from '{session.experiment.extends}'")


def _train(
    session: Session,
    folder: RunFolder,
    saving: Saving,
    interrupts: Interrupts,
    began: float,
    callbacks: Sequence[Callback] | None,
) -> Progress:
    """Drive the generator of events, and do what each asks for.

    Args:
        session: The experiment, loaded.
        folder: The run folder, locked.
        saving: Which checkpoints to write.
        interrupts: Signals that came so far.
        began: When the command began, by `time.monotonic`.
        callbacks: Told of steps and tasks; None for a progress bar on a terminal.

    Returns:
        The progress at the end of the run.
    """
    progress = Progress.read(session, folder)
    _log_start(session, progress)
    if progress.position.tasks and not folder.readable(folder.result):
        folder.write(folder.result, result_of(session, progress))
    trainer = session.trainer
    events = run_stream(
        trainer,
        session.stream,
        progress.state,
        seed=session.experiment.seed,
        start=progress.position,
        matrices=progress.matrices,
        evaluator=session.evaluator,
    )
    watch = Monitor(
        folder.tensorboard,
        batch_size=trainer.recipe.schedule.batch_size,
        steps=[trainer.steps(session.stream, n) for n in range(len(session.stream.tasks))],
        start=progress.position,
        began=began,
        shows_bar=callbacks is None,
    )
    callbacks = callbacks or ()
    for callback in callbacks:
        callback.on_start(watch.steps - watch.done)
    with count_compiles() as compiles, watch as monitor:
        recorder = Recorder(session, folder, saving, monitor, compiles, interrupts, progress)
        for event in events:
            if isinstance(event, StepDone):
                recorder.step_done(event)
            elif isinstance(event, MeasureBatch):
                recorder.measuring(event)
            elif isinstance(event, TaskEnded):
                recorder.task_ended(event)
            notify(callbacks, event)
            interrupts.check()
    return recorder.progress


def _log_start(session: Session, progress: Progress) -> None:
    """Say what is trained, and from where; warn if tasks are so small that little is learned."""
    experiment = session.experiment
    LOGGER.info(f"{experiment.label} on {session.stream.name}, seed {experiment.seed}")
    if progress.position > START:
        LOGGER.info(f"resuming {_described(progress.position)}")
    elif session.trainer.takes_steps:
        warn_of_few_steps(session.trainer.recipe.schedule, session.stream)


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
        self.identity = identity_of(self.session)
        self.outline = outline_of(self.session)
        self.keeps_learner = _needs_learner(self.session)
        self.step = self.progress.position.step
        self.began = time.monotonic()

    @property
    def _is_stopping(self) -> bool:
        """Whether to save because of a signal. Several processes do not: it reaches them at
        different steps, and they can only save together."""
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
        self.progress = advanced(self.session, self.progress, ended, self.compiles)
        self.monitor.on_task(ended)
        result = result_of(self.session, self.progress, self.monitor.first_step)
        self.folder.write(self.folder.result, result)
        if self.keeps_learner:
            self._save_learner(ended)
        self._save(self.progress)
        self.step = 0
        self.began = time.monotonic()

    def _save_within(self, state: TrainState, *, trained: bool) -> None:
        before = self.progress
        tasks = before.position.tasks
        check_steps(self.session.trainer, state, tasks)
        self.monitor.flush()
        spent = self.compiles.seconds
        elapsed = time.monotonic() - self.began - compile_seconds_of(self.session, spent)[0]
        progress = dataclasses.replace(
            before,
            state=state,
            position=StreamPosition(tasks, self.step, trained),
            train_seconds=before.train_seconds + elapsed,
            compile_seconds=before.compile_seconds + sum(spent.values()),
            compiles=most_compiles(before.compiles, self.compiles),
        )
        self._save(progress)

    def _save_learner(self, ended: TaskEnded) -> None:
        trainer = self.session.trainer
        learner = make_learner(trainer, self.session.stream, ended.state, ended.task_number)
        is_spread = lambda leaf: isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        learner = jax.tree.map(lambda leaf: to_host(leaf) if is_spread(leaf) else leaf, learner)
        on_writer(lambda: learner.save(self.folder.learner))

    def _save(self, progress: Progress) -> None:
        record = {"identity": self.identity, "outline": self.outline, **progress.record()}
        self.checkpoints.save(progress.position, progress.state, record)


def _needs_learner(session: Session) -> bool:
    """Whether the folder has to hold the learner, since its config cannot make it again.

    A model that no file can hold is no reason not to train it.
    """
    if not session.experiment.given:
        return False
    learner = make_learner(session.trainer, session.stream, session.state, task_number=0)
    try:
        check_savable(learner)
    except UserError as error:
        LOGGER.warning(f"{error} So `px.load` and `promptax predict` cannot open this run.")
        return False
    return True


def _described(position: StreamPosition) -> str:
    if position.between:
        return f"after {position.tasks} tasks"
    measured = ", trained and not measured" if position.trained else ""
    return f"{position.step} steps into task {position.tasks + 1}{measured}"


@contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """If a run cannot go on, say in its error which checkpoint is left."""
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
    return f"The last checkpoint is {last}: go on with resume=True."


class _LogFile(logging.FileHandler):
    """A log that fails as every other file does; `logging` would print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    if path.exists():
        require_file(path, "log")  # opening a named pipe would never return
    handler = _LogFile(path) if is_writer() else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
