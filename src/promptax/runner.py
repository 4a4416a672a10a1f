"""Train, evaluate and load runs: what the command line does, as functions."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from promptax.compiles import Compiles, count_compiles
from promptax.config import Protocol
from promptax.errors import UserError
from promptax.evaluate import Evaluation
from promptax.experiment import Experiment, Session, outcome
from promptax.interrupt import deferred_interrupts
from promptax.learner import Learner
from promptax.loop import NonFinite, StageEnd, empty_matrices, learner, run_stages
from promptax.metrics import AccuracyMatrix
from promptax.monitor import LOGGER, Monitor
from promptax.run import RunFolder
from promptax.train import Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: what a checkpoint holds."""

    state: TrainState
    matrices: dict[str, AccuracyMatrix]
    stages_done: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    compile_seconds: float = 0.0
    images: int = 0
    """Training images processed, each as often as it was."""
    prompt_usage: list[list[int]] = dataclasses.field(default_factory=list)
    """`[tasks, prompts]`: how often a prompt was given to the test images of a task."""

    @classmethod
    def read(cls, session: Session, folder: RunFolder) -> "Progress":
        """From the newest checkpoint, or the beginning where there is none."""
        restored = folder.checkpoints.restore(session.state)
        if restored is None:
            return cls(session.state, empty_matrices(session.evaluator))
        state, record = restored
        stored = record.pop("matrices").items()
        matrices = {name: AccuracyMatrix(np.asarray(rows, float)) for name, rows in stored}
        record.pop("format")
        return cls(state, matrices, **record)

    def record(self) -> dict[str, Any]:
        """All but the state, as JSON."""
        matrices = {name: matrix.values.tolist() for name, matrix in self.matrices.items()}
        scalars = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return {"matrices": matrices, **scalars}

    def timing(self) -> dict[str, float]:
        """As a result reports it, in seconds; compilation is in neither of the other two."""
        return {
            "compile": self.compile_seconds,
            "train": self.train_seconds,
            "evaluate": self.evaluate_seconds,
            "images_per_second": self.images / max(self.train_seconds, 1e-9),
        }


def train(
    experiment: Experiment, path: Path, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train an experiment into a run folder, and return its result.

    Raises `UserError` for what does not fit, before anything is written, and for a loss that
    is not finite, naming the last good checkpoint; `KeyboardInterrupt` after the step in which
    Ctrl-C came.
    """
    with deferred_interrupts() as check_interrupt:
        session, folder = Session(experiment), RunFolder(path)
        check_interrupt()
        folder.create(experiment.to_json(), resume=resume, overwrite=overwrite)
        if folder.result.is_file():
            _check_unchanged(session, folder)
        _train(session, folder, check_interrupt)
        result = folder.read(folder.result)
        from promptax.plot import save_run_plots  # matplotlib takes longer to import than JAX

        save_run_plots(result, folder.path)
        check_interrupt()
    return result


def _train(session: Session, folder: RunFolder, check_interrupt: Callable[[], None]) -> None:
    with folder.locked(), _log_to(folder.path / "log.txt"), count_compiles() as compiles:
        progress = Progress.read(session, folder)
        if progress.stages_done:
            LOGGER.info(f"resuming after {progress.stages_done} tasks")
        with _monitor(session, folder, progress) as monitor:
            for end in _stages(session, progress, monitor, check_interrupt):
                progress = _advance(progress, end, session, compiles)
                # The result first: what a kill leaves between them, the next run writes again.
                folder.write(folder.result, _result(session, progress, compiles))
                folder.checkpoints.save(progress.stages_done, end.state, progress.record())
                monitor.on_stage(end)


def evaluate(path: Path, protocol: Protocol) -> tuple[Session, Evaluation]:
    """Measure a run's last checkpoint under another protocol.

    Raises `UserError` where there is no run, or none of its tasks is finished.
    """
    session, progress = _open(path, protocol)
    return session, session.evaluator(progress.state.params, progress.stages_done - 1)


def load(path: str | Path) -> Learner:
    """The learner of a run, as its last checkpoint holds it: `learner(images)` gives logits.

    Raises `UserError` where there is no run, none of its tasks is finished, or its weights
    or data are no longer what they were.
    """
    session, progress = _open(Path(path))
    return learner(session.evaluator, progress.state, progress.stages_done - 1)


def _open(path: Path, protocol: Protocol | None = None) -> tuple[Session, Progress]:
    folder = RunFolder(path)
    experiment = Experiment.from_json(folder.read(folder.config))
    if protocol is not None:
        recipe = dataclasses.replace(experiment.recipe, protocol=protocol)
        experiment = dataclasses.replace(experiment, recipe=recipe)
    session = Session(experiment)
    progress = Progress.read(session, folder)
    if not progress.stages_done:
        raise UserError(f"run '{path}' has not finished its first task: go on with --resume.")
    _check_unchanged(session, folder)
    return session, progress


def _check_unchanged(session: Session, folder: RunFolder) -> None:
    """Trained prompts are worth nothing on other weights, nor a matrix on another split."""
    before, now = folder.read(folder.result), session.facts()
    for part in ("weights", "stream"):
        old, new = (
            f"{facts[part]['name']} (sha256 {facts[part]['sha256']})" for facts in (before, now)
        )
        if old != new:
            raise UserError(f"the {part} of run '{folder.path}' changed: {old} then, {new} now.")


def _monitor(session: Session, folder: RunFolder, progress: Progress) -> Monitor:
    schedule = session.experiment.recipe.schedule
    steps = [schedule.steps(len(stage.index)) for stage in session.stream.stages]
    done = sum(steps[: progress.stages_done])
    return Monitor(len(steps), folder.tensorboard, schedule.batch_size, sum(steps), done)


def _stages(
    session: Session, progress: Progress, monitor: Monitor, check_interrupt: Callable[[], None]
) -> Iterator[StageEnd]:
    last = progress.stages_done

    def on_step(state: TrainState, metrics: Metrics) -> None:
        monitor.on_step(state, metrics)
        check_interrupt()

    try:
        for end in run_stages(
            session.evaluator,
            progress.state,
            progress.matrices,
            seed=session.experiment.seed,
            start=progress.stages_done,
            on_step=on_step,
        ):
            yield end
            last = end.stage + 1
    except NonFinite as error:
        kept = f"the one after task {last} is kept" if last else "there is none yet"
        raise UserError(f"{error} Checkpoints: {kept}.") from None


def _advance(progress: Progress, end: StageEnd, session: Session, compiles: Compiles) -> Progress:
    examples = len(session.stream.stages[end.stage].index)
    spent = compiles.take_seconds()
    return Progress(
        end.state,
        end.matrices,
        end.stage + 1,
        progress.train_seconds + end.train_seconds - spent["train"],
        progress.evaluate_seconds + end.evaluate_seconds - spent["evaluate"] - spent["query"],
        progress.compile_seconds + sum(spent.values()),
        progress.images + examples * session.experiment.recipe.schedule.epochs,
        progress.prompt_usage if end.evaluation is None else _usage(end.evaluation),
    )


def _result(session: Session, progress: Progress, compiles: Compiles) -> dict[str, Any]:
    return {
        **session.facts(),
        **outcome(progress.matrices, progress.stages_done),
        "compiles": {name: compiles.count[name] for name in ("train", "evaluate", "query")},
        "prompt_usage": progress.prompt_usage,
        "timing": progress.timing(),
    }


def _usage(evaluation: Evaluation) -> list[list[int]]:
    prompts = 1 + max((int(ids.max(initial=-1)) for ids in evaluation.selected), default=-1)
    counts = [np.bincount(ids.ravel(), minlength=prompts) for ids in evaluation.selected]
    return [count.tolist() for count in counts] if prompts else []


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
