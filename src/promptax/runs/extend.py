"""Extending a finished run by more tasks, with new classes.

An extended run has a folder of its own. It begins with a checkpoint in which the state of the
finished run has grown to the larger number of classes and tasks, and goes on from there as from
any other checkpoint.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from promptax.core.errors import UserError
from promptax.methods.components.growth import for_longer_stream
from promptax.methods.hide import HiDePrompt
from promptax.methods.rehearsal import AbstractRehearsal, unwrapped
from promptax.runs.checkpoint import Checkpoint
from promptax.runs.experiment import Experiment, Session
from promptax.runs.folder import RunFolder
from promptax.runs.inputs import Found
from promptax.runs.opening import last_finished, open_experiment, recorded_weights, stream_outline
from promptax.runs.outline import Outline, locate_weights
from promptax.runs.progress import Progress, check_identity
from promptax.training.loop import empty_matrices
from promptax.training.metrics import AccuracyMatrix
from promptax.training.state import TrainState
from promptax.training.trainer import Trainer


def extension(experiment: Experiment, run: Path) -> tuple[Experiment, Found | None]:
    """The experiment that goes on from a finished run, on the data of a given experiment.

    Args:
        experiment: The settings of the new tasks. Its data are the new ones alone.
        run: Folder of the finished run.

    Returns:
        The experiment with the data of both, and where the weights are now.

    Raises:
        UserError: The run is not finished, or its method, seed or data do not allow it.
    """
    folder = RunFolder(run)
    before = open_experiment(folder, type(experiment.method)).located(run)
    checkpoint = last_finished(folder)
    learned = stream_outline(checkpoint, before, run)
    _check(before, experiment, checkpoint, len(learned.tasks), run)
    experiment = dataclasses.replace(
        experiment, extends=run.absolute(), earlier=(*before.earlier, before.data)
    )
    if experiment.method == before.method:
        tasks = len(experiment.stream().tasks)
        method = for_longer_stream(before.method, len(learned.tasks), tasks)
        experiment = dataclasses.replace(experiment, method=method)
    found = locate_weights(experiment.backbone, recorded_weights(checkpoint), run)
    return experiment, found


def _check(
    before: Experiment, now: Experiment, checkpoint: Checkpoint, tasks: int, run: Path
) -> None:
    """Raise `UserError` where a run cannot be extended as asked for."""
    if checkpoint.position.tasks < tasks:
        raise UserError(
            f"run '{run}' has finished {checkpoint.position.tasks} of {tasks} tasks: finish it "
            "with resume=True before it is extended."
        )
    if isinstance(unwrapped(before.method), HiDePrompt):
        raise UserError(
            "a run of hide cannot be extended: its statistics are numbered by pairs of task and "
            "class of the whole stream."
        )
    if before.data.joint or now.data.joint:
        raise UserError("joint training cannot be extended: leave out --data.joint.")
    if now.seed != before.seed:
        raise UserError(
            f"run '{run}' has seed {before.seed}: go on with the same one, not with {now.seed}."
        )
    if now.replay != before.replay:
        raise UserError(f"run '{run}' has another replay buffer: go on with the same one.")
    learner = before.learner()
    replay = learner.replay if isinstance(learner, AbstractRehearsal) else before.replay
    fixed = not replay.buffer_per_class and replay.buffer_kind != "reservoir"
    if replay.buffer_size and fixed:
        raise UserError(
            f"a {replay.buffer_kind} buffer of fixed size divides its slots among all classes, so "
            "it cannot be extended: train with --buffer-per-class or --buffer-kind reservoir."
        )


def grown(session: Session) -> Progress:
    """How far an extended run has come before its first new task.

    Args:
        session: The extended experiment, loaded.

    Raises:
        UserError: The finished run has changed since, or another setting determines the shape of
            what it learned.
    """
    experiment = session.experiment
    assert experiment.extends is not None, "only an extended run has grown"
    folder = RunFolder(experiment.extends)
    before = open_experiment(folder, type(experiment.method))
    checkpoint = last_finished(folder)
    first = dataclasses.replace(
        experiment, data=experiment.earlier[-1], earlier=experiment.earlier[:-1]
    ).stream()
    digests = {"weights": session.weights["sha256"], "stream": first.sha256}
    check_identity(
        checkpoint,
        {
            **{name: {"sha256": digest} for name, digest in digests.items()},
            "images": {"size": experiment.recipe.images.size},
        },
    )
    shape = Outline.of(session.stream).image_shape
    if session.keeps_images and shape != Outline.of(first).image_shape:
        raise UserError(
            f"the replay buffer of '{experiment.extends}' holds images of another size than the "
            f"new ones, which are {shape}: prepare the new data in the size of the old."
        )
    _, start = Trainer.create(
        before.learner(),
        session.backbone,
        first,
        before.recipe,
        mesh=session.mesh,
        key=jr.key(before.seed),
    )
    learned = Progress.of(checkpoint, start)
    matrices = {
        name: _grown_matrix(learned.matrices.get(name), matrix)
        for name, matrix in empty_matrices(session.evaluator).items()
    }
    return dataclasses.replace(
        learned, state=grown_state(learned.state, session.state), matrices=matrices
    )


def grown_state(old: TrainState, new: TrainState) -> TrainState:
    """The state of a larger stream that knows what a smaller one has learned.

    Every axis that belongs to classes, tasks or prompts has grown at its end, so the learned
    values come first, and behind them the initial ones of what is new.

    Raises:
        UserError: The states are of different models.
    """
    # Leaves are matched by path. What is not an array, such as a number of tasks, is taken from the
    # new state.
    learned = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(new)]
    if paths != list(learned):
        raise UserError("the extended run has another model: keep the settings of the first run.")
    return jax.tree.map_with_path(
        lambda path, leaf: _grown_leaf(path, learned[jax.tree_util.keystr(path)], leaf), new
    )


def _grown_leaf(path: PyTree, old: Array, new: Array) -> Array:
    if not eqx.is_array(new):
        return new
    if old.shape == new.shape:
        return old
    fits = old.ndim == new.ndim and all(a <= b for a, b in zip(old.shape, new.shape, strict=True))
    if not fits or old.dtype != new.dtype:
        raise UserError(
            f"the extended run needs {jax.tree_util.keystr(path)} of shape {new.shape}, which "
            f"{old.shape} cannot grow to: keep the settings of the first run."
        )
    corner = tuple(slice(size) for size in old.shape)
    return jax.device_put(new.at[corner].set(old), new.sharding)


def _grown_matrix(old: AccuracyMatrix | None, new: AccuracyMatrix) -> AccuracyMatrix:
    """The accuracies of a run, with empty rows and columns for the new tasks."""
    if old is None:
        return new  # a protocol that the first run did not measure
    values = np.array(new.values)
    rows, columns = old.values.shape
    values[:rows, :columns] = old.values
    before = new.before
    if before is not None and old.before is not None:
        before = np.concatenate([old.before, before[columns:]])
    return dataclasses.replace(new, values=values, before=before)
