"""Open a finished run: measure it again, or load it to predict."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.random as jr
from jax.sharding import Mesh

from promptax.core.errors import UserError
from promptax.core.settings import Evaluation
from promptax.core.sharding import make_mesh
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.runs.checkpoint import Checkpoint
from promptax.runs.experiment import Experiment, Session
from promptax.runs.folder import RunFolder
from promptax.runs.outline import Outline, locate_weights
from promptax.runs.progress import Progress, check_identity, identity_in
from promptax.training.evaluate import Measurement
from promptax.training.learner import Learner
from promptax.training.loop import make_learner
from promptax.training.trainer import Trainer


def evaluate(
    path: Path,
    evaluation: Evaluation,
    *,
    method: type[AbstractMethod] | None = None,
    weights: Path | None = None,
    data_dir: Path | None = None,
    mesh: Mesh | None = None,
) -> tuple[Session, Measurement]:
    """Measure a run, as of its last finished task, under another protocol.

    Args:
        path: Folder of the run.
        evaluation: How to measure.
        method: The class of the run's method, if it is not part of the package.
        weights: The file of the run's weights; if None, it is looked for by its digest.
        data_dir: The folder of prepared sets, if it has moved.
        mesh: The devices; all that there are if None.

    Raises:
        UserError: There is no run, none of its tasks is finished, its method is not known, or its
            data or weights were not found or are no longer what they were.
    """
    folder = RunFolder(path)
    experiment = open_experiment(folder, method)
    checkpoint = last_finished(folder)
    experiment = dataclasses.replace(
        experiment.located(path, data_dir),
        recipe=dataclasses.replace(experiment.recipe, evaluation=evaluation),
    )
    found = locate_weights(experiment.backbone, recorded_weights(checkpoint), path, weights)
    session = Session(experiment, mesh or make_mesh(), found)
    progress = Progress.read(session, folder, between=True)
    return session, session.evaluator(progress.state, progress.position.tasks - 1)


def load(
    path: str | Path,
    *,
    method: type[AbstractMethod] | None = None,
    weights: str | Path | None = None,
) -> Learner:
    """Load the learner of a run after its last finished task: `learner(images)` gives logits.

    The run folder is enough: the data that it was trained on need not be there. The weights
    beneath it are looked for by their digest where they were, in the run folder, beside it, and
    among downloaded ones.

    Args:
        path: Folder of the run.
        method: The class of the run's method, if it is not part of the package. Opening a run
            never executes code that its folder names.
        weights: The file of the weights, if it is elsewhere.

    Raises:
        UserError: There is no run, none of its tasks is finished, its method is not known, or its
            weights were not found.
    """
    path = Path(path)
    folder = RunFolder(path)
    experiment = open_experiment(folder, method)
    checkpoint = last_finished(folder)
    check_identity(checkpoint, identity_in(experiment))
    given = None if weights is None else Path(weights)
    found = locate_weights(experiment.backbone, recorded_weights(checkpoint), path, given)
    stream = stream_outline(checkpoint, experiment, path)
    recipe = experiment.recipe
    backbone, _ = experiment.backbone.load(recipe.images.size, found)
    trainer, start = Trainer.create(
        experiment.learner(), backbone, stream, recipe, key=jr.key(experiment.seed)
    )
    state = checkpoint.state(start)
    return make_learner(trainer, stream, state, checkpoint.position.tasks - 1)


def open_experiment(folder: RunFolder, method: type[AbstractMethod] | None) -> Experiment:
    """The experiment of a run.

    Args:
        folder: The run folder.
        method: The class of the run's method, if it is not part of the package.

    Raises:
        UserError: There is no run, or its method is not known.
    """
    stored = folder.read(folder.config)
    try:
        return Experiment.from_json(stored, method=method)
    except UserError as error:
        raise UserError(f"'{folder.config}': {error}") from None


def last_finished(folder: RunFolder) -> Checkpoint:
    """The checkpoint after the last finished task. Raises `UserError` if there is none."""
    checkpoint = folder.checkpoints.newest(between=True)
    if checkpoint is None or not checkpoint.position.tasks:
        raise UserError(
            f"run '{folder.path}' has not finished its first task: go on with resume=True."
        )
    return checkpoint


def recorded_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts about the weights in a checkpoint; versions before 0.3 kept only their digest."""
    record = checkpoint.record
    with _explained_record(checkpoint):
        facts = record["outline" if "outline" in record else "identity"]["weights"]
        return {"sha256": facts["sha256"], **facts}


def stream_outline(checkpoint: Checkpoint, experiment: Experiment, run: Path) -> TaskStream:
    """The stream of a run without its images.

    Versions before 0.3 did not keep it in checkpoints; then the data is needed.
    """
    if "outline" in checkpoint.record:
        with _explained_record(checkpoint):
            return Outline.from_json(checkpoint.record["outline"]["stream"]).stream()
    stream = experiment.located(run).stream()
    check_identity(checkpoint, {"stream": {"sha256": stream.sha256}})
    return stream


@contextmanager
def _explained_record(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what a record of another shape raises into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"checkpoint {checkpoint.path} has a record that is not of this version "
            f"({type(error).__name__} {error})."
        ) from None
