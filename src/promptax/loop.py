"""Train a method on a stream: the stages one after another, measured after each."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.random as jr
from jax.sharding import Mesh

from promptax.config import Recipe
from promptax.data.stream import TaskStream
from promptax.errors import UserError
from promptax.evaluate import Evaluation, Evaluator, protocol_names
from promptax.learner import Learner
from promptax.method import AbstractMethod
from promptax.metrics import AccuracyMatrix
from promptax.nn.backbone import AbstractBackbone
from promptax.train import Metrics, Trainer, TrainState

OnStep = Callable[[TrainState, Metrics], None]
"""Called after every step; reading a value here waits for the device."""


class NonFinite(UserError):
    """A loss or gradient was not finite; the steps after it are worthless."""


@dataclass(frozen=True)
class StageEnd:
    """Where a run stands after a stage: all that a checkpoint or a report wants."""

    stage: int
    state: TrainState
    evaluation: Evaluation | None
    """None after a stage that is not measured (see `Protocol.every`)."""
    matrices: dict[str, AccuracyMatrix]
    """By protocol, all measured so far; `instance` is the headline."""
    train_seconds: float
    evaluate_seconds: float


@dataclass(frozen=True)
class Fit:
    """The outcome of a run."""

    learner: Learner
    matrices: dict[str, AccuracyMatrix]

    @property
    def matrix(self) -> AccuracyMatrix:
        """The headline: each image by itself."""
        return self.matrices["instance"]


def fit(
    method: AbstractMethod,
    stream: TaskStream,
    backbone: AbstractBackbone,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    on_stage: Callable[[StageEnd], None] = lambda end: None,
) -> Fit:
    """Train a method on all tasks of a stream, and measure it after each.

    Raises `UserError` where method, backbone, stream and recipe do not fit together, and
    `NonFinite` where the loss is lost.
    """
    recipe = Recipe() if recipe is None else recipe
    stream = method.stream(stream)
    trainer, state = Trainer.create(
        method, backbone, stream.num_classes, recipe, mesh=mesh, key=jr.key(seed)
    )
    evaluator = Evaluator(trainer, stream)
    end = None
    for end in run_stages(evaluator, state, empty_matrices(evaluator), seed=seed):
        on_stage(end)
    assert end is not None, "a stream has at least one stage"
    return Fit(learner(evaluator, end.state, end.stage), end.matrices)


def empty_matrices(evaluator: Evaluator) -> dict[str, AccuracyMatrix]:
    """Nothing measured yet, under every protocol that is asked for."""
    stream = evaluator.stream
    empty = AccuracyMatrix.empty(len(stream.stages), len(stream.tasks))
    return dict.fromkeys(protocol_names(evaluator.protocol), empty)


def run_stages(
    evaluator: Evaluator,
    state: TrainState,
    matrices: dict[str, AccuracyMatrix],
    *,
    seed: int,
    start: int = 0,
    on_step: OnStep = lambda state, metrics: None,
) -> Iterator[StageEnd]:
    """Train and evaluate the stages from number `start` on, and yield after each.

    Raises `NonFinite` at the end of a stage in which the loss was lost, before anything of it
    is yielded.
    """
    for stage in range(start, len(evaluator.stream.stages)):
        began = time.monotonic()
        state = train_stage(evaluator.trainer, state, evaluator.stream, stage, seed, on_step)
        trained = time.monotonic()
        evaluation = evaluator(state.params, stage) if evaluator.due(stage) else None
        seconds = trained - began, time.monotonic() - trained
        if evaluation is not None:
            rows = evaluation.accuracy.items()
            matrices = {name: matrices[name].with_row(stage, row) for name, row in rows}
        yield StageEnd(stage, state, evaluation, matrices, *seconds)


def train_stage(
    trainer: Trainer,
    state: TrainState,
    stream: TaskStream,
    stage: int,
    seed: int,
    on_step: OnStep = lambda state, metrics: None,
) -> TrainState:
    """Train one stage from its beginning, without evaluation."""
    task = trainer.task(stream, stage)
    state = trainer.begin_task(state, task)
    for batch in trainer.batches(stream, stage, seed=seed):
        state, metrics = trainer.step(state, batch, task)
        on_step(state, metrics)
    check_finite(state, stage)
    return trainer.end_task(state, task)


def check_finite(state: TrainState, stage: int) -> None:
    """Raise `NonFinite` with step and task if a loss or gradient was not finite."""
    if (bad := int(state.bad_step)) >= 0:
        raise NonFinite(
            f"the loss is not finite since step {bad} (task {stage}): "
            "lower the learning rate, or look at the data and weights."
        )


def learner(evaluator: Evaluator, state: TrainState, stage: int) -> Learner:
    """The model after a stage, ready to be called."""
    trainer, stream = evaluator.trainer, evaluator.stream
    seen = trainer.task(stream, stage).seen
    model = trainer.model(state)
    return Learner(trainer.method, model, seen, trainer.recipe.images, stream.class_names)
