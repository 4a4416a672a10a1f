"""`fit`: train a method from Python, in memory or into a run folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.random as jr
from jax.sharding import Mesh

from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.settings import Recipe, Replay, Saving
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.methods.rehearsal import Rehearsal
from promptax.nn.backbone import AbstractBackbone
from promptax.runs.experiment import Experiment
from promptax.runs.given import GivenBackbone, GivenData
from promptax.runs.inputs import Backbone, Data
from promptax.runs.runner import run_experiment
from promptax.training.arguments import (
    check_backbone,
    check_mesh,
    check_method,
    check_stream,
    checked_seed,
    warn_of_few_steps,
)
from promptax.training.callbacks import Callback, ProgressBar, check_callbacks, notify
from promptax.training.loop import Fit, TaskEnded, make_learner, run_stream
from promptax.training.trainer import Trainer

_SWITCH = re.compile(r"\b(resume|overwrite)=True")
"""The arguments that errors about run folders advise."""


@dataclass(frozen=True)
class Run:
    """The folder of a run that `fit` trains, and what to do if the run has begun already."""

    folder: str | Path
    """The folder; it is made if it does not exist."""
    resume: bool = False
    """Go on from the last checkpoint of the run in the folder, or begin if there is none."""
    overwrite: bool = False
    """Delete the files of the run in the folder, and start again."""
    saving: Saving = Saving()
    """Which checkpoints to write and keep."""

    def __post_init__(self):
        check_fields(self)


def fit(
    method: AbstractMethod,
    stream: TaskStream | Data,
    backbone: AbstractBackbone | Backbone,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    run: str | Path | Run | None = None,
) -> Fit:
    """Train a method on all tasks of a stream, and measure it after each.

    With `run`, the run gets a folder as on the command line, with settings, results, plots and
    checkpoints: it can be resumed, and `promptax report` and `promptax predict` take it. If stream
    and backbone are settings (`px.Data`, `px.Backbone`), the folder is complete. If they are
    objects, or the optimizer is a `px.Optax`, no file describes them: the folder then holds the
    whole learner, the run can be resumed in Python only, where the same objects are given again,
    and `promptax evaluate` and `reproduce` refuse it.

    Args:
        method: The method, such as `px.methods.L2P()`. Its hyperparameters are its fields.
        stream: The tasks, such as `px.data.split_glyphs()`, or
            `px.data.class_incremental(train, test, num_tasks=5)` of your own images; or settings
            that load them, such as `px.Data("split-glyphs")`.
        backbone: The pre-trained backbone, such as `px.nn.load_vit("glyph-vit")`; or settings that
            load it, such as `px.Backbone("glyph-vit")`.
        recipe: Optimizer, schedule, preparation of images and evaluation. The defaults are those
            of the papers (images of 224 pixels); those of `px.preset(name).recipe` are tuned.
        seed: Seed of initialisation, order of examples and augmentation.
        mesh: The devices, from `jax.make_mesh`; all that there are if None.
        progress: Whether to show a progress bar on stderr.
        callbacks: Called in their order at every step, after every task and at the end.
        run: The run folder, which must not hold a run yet; or a `px.Run`, which can also resume or
            overwrite one. If None, nothing is written.

    Returns:
        The trained learner and the accuracies.

    Raises:
        UserError: Method, backbone, stream and recipe do not fit together, or the folder holds
            another run.
        NonFinite: The loss is not finite.
        KeyboardInterrupt: A signal came. A run with a folder has saved its last step.
    """
    recipe = Recipe() if recipe is None else recipe
    seed = checked_seed(seed)
    check_mesh(mesh)
    check_callbacks(callbacks)
    place = run if run is None or isinstance(run, Run) else Run(run)
    followers = [*callbacks, *([ProgressBar()] if progress else [])]
    if place is None:
        if isinstance(stream, Data):
            stream = stream.load(seed)
        if isinstance(backbone, Backbone):
            backbone, _ = backbone.load(recipe.images.size)
        fitted = _fit_in_memory(method, stream, backbone, recipe, seed, mesh, followers)
    else:
        experiment = _experiment(method, stream, backbone, recipe, seed)
        fitted = _fit_into(place, experiment, mesh, followers)
    for follower in followers:
        follower.on_end(fitted)
    return fitted


def _fit_in_memory(
    method: AbstractMethod,
    stream: TaskStream,
    backbone: AbstractBackbone,
    recipe: Recipe,
    seed: int,
    mesh: Mesh | None,
    followers: Sequence[Callback],
) -> Fit:
    key = jr.key(seed)
    trainer, state = Trainer.create(method, backbone, stream, recipe, mesh=mesh, key=key)
    if trainer.takes_steps:
        warn_of_few_steps(recipe.schedule, stream)
    for follower in followers:
        follower.on_start(sum(trainer.steps(stream, n) for n in range(len(stream.tasks))))
    ended = None
    for event in run_stream(trainer, stream, state, seed=seed):
        if isinstance(event, TaskEnded):
            ended = event
        notify(followers, event)
    assert ended is not None, "a stream has at least one task"
    return Fit(make_learner(trainer, stream, ended.state, ended.task_number), ended.matrices)


def _fit_into(
    run: Run, experiment: Experiment, mesh: Mesh | None, followers: Sequence[Callback]
) -> Fit:
    try:
        session, reached = run_experiment(
            experiment,
            run.folder,
            resume=run.resume,
            overwrite=run.overwrite,
            saving=run.saving,
            mesh=mesh,
            callbacks=followers,
        )
    except UserError as error:
        # `fit` takes these switches in a `Run`, and `train` as arguments of its own.
        as_run = lambda switch: f"run=px.Run({str(run.folder)!r}, {switch[0]})"
        raise UserError(_SWITCH.sub(as_run, str(error))) from None
    last = reached.position.tasks - 1
    learner = make_learner(session.trainer, session.stream, reached.state, last)
    return Fit(learner, reached.matrices)


def _experiment(
    method: AbstractMethod,
    stream: TaskStream | Data,
    backbone: AbstractBackbone | Backbone,
    recipe: Recipe,
    seed: int,
) -> Experiment:
    """The experiment of a run, with objects in the places of settings."""
    check_method(method)
    if isinstance(stream, TaskStream):
        stream = GivenData.of(stream)
    if isinstance(backbone, AbstractBackbone):
        backbone = GivenBackbone.of(backbone)
    if not isinstance(stream, Data):
        check_stream(stream)
    if not isinstance(backbone, Backbone):
        check_backbone(backbone)
    replay = Replay()
    if isinstance(method, Rehearsal):
        # A config keeps the two apart.
        replay = method.replay
        method = method.method
    return Experiment(method, stream, backbone, recipe, seed, replay)
