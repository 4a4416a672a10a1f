"""Train a method on a stream: the stages one after another, measured after each."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import Recipe
from promptax.core.types import START, Position
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.nn.backbone import AbstractBackbone
from promptax.training.evaluate import Evaluation, Evaluator, protocol_names
from promptax.training.learner import Learner
from promptax.training.metrics import AccuracyMatrix
from promptax.training.queries import training_queries
from promptax.training.train import Metrics, Trainer, TrainState

OnStep = Callable[[TrainState, Metrics], None]
"""Called after every step; reading a value here waits for the device."""


OnMeasure = Callable[[TrainState], None]
"""Called before every batch of an evaluation, with the state that is measured."""

OnQuery = Callable[[], None]
"""Called before every batch of the pass that computes the queries of a task's training images."""

# Steps after which the number of bad ones is read: the device is long done with them.
_LOOK_BACK = 16


class NonFinite(UserError):
    """Losses or gradients were not finite, in more steps than may be skipped."""


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
        method,
        backbone,
        stream.num_classes,
        recipe,
        stream=stream,
        mesh=mesh,
        key=jr.key(seed),
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
    start: Position = START,
    on_step: OnStep = lambda state, metrics: None,
    on_measure: OnMeasure = lambda state: None,
    on_query: OnQuery = lambda: None,
) -> Iterator[StageEnd]:
    """Train and evaluate the stages from `start` on, and yield after each.

    Raises `NonFinite` within a stage in which the loss was lost, before anything of it is
    yielded.
    """
    for stage in range(start.stages, len(evaluator.stream.stages)):
        began, at = time.monotonic(), start if stage == start.stages else Position(stage)
        if not at.trained:
            state = train_stage(
                evaluator.trainer, state, evaluator.stream, stage, seed, on_step, at.step, on_query
            )
        trained, evaluation = time.monotonic(), None
        if evaluator.due(stage):
            look = lambda state=state: on_measure(state)
            evaluation = evaluator(state.params, stage, on_batch=look)
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
    start: int = 0,
    on_query: OnQuery = lambda: None,
) -> TrainState:
    """Train one stage, without evaluation; from step `start` on, if it has begun already."""
    task, faults = trainer.task(stream, stage), deque[Array]()
    if not start:
        state = trainer.begin_task(state, task)
    queries = training_queries(trainer, state.params, stream, stage, on_query)
    for batch in trainer.batches(stream, stage, seed=seed, start=start, queries=queries):
        state, metrics = trainer.step(state, batch, task)
        on_step(state, metrics)
        faults.append(metrics.faults)
        if len(faults) > _LOOK_BACK and int(faults.popleft()) > _skipped(trainer):
            break
    state = trainer.review(state, task)
    check_finite(trainer, state, stage)
    state = trainer.end_task(trainer.observe(state, stream, stage), task)
    if bad := _first_bad_leaf(state.params):
        # There are methods that solve for their weights here.
        raise NonFinite(f"after the last step of task {stage + 1}, weight {bad} is not finite.")
    return state


def check_finite(trainer: Trainer, state: TrainState, stage: int) -> None:
    """Raise `NonFinite` with step, task and leaf if too many steps were not finite."""
    step, skipped = 1 + int(state.faults.step), _skipped(trainer)
    if int(state.faults.count) <= skipped:
        return
    since = f"in more than {skipped} steps, first in step" if skipped else "since step"
    raise NonFinite(
        f"the loss is not finite {since} {step} (task {stage + 1}; {_first_bad(trainer, state)}): "
        "lower the learning rate, or look at the data and weights."
    )


def _skipped(trainer: Trainer) -> int:
    return trainer.recipe.optimizer.skip_nonfinite


def _first_bad(trainer: Trainer, state: TrainState) -> str:
    """Where it began: a weight that is not finite, or else the gradient of one."""
    if bad := _first_bad_leaf(trainer.model(state)):
        return f"weight {bad} is not finite"
    if (number := int(state.faults.leaf)) < 0:
        return "all weights and gradients are finite"
    path, _ = jax.tree.leaves_with_path(state.params)[number]
    return f"all weights are finite, the gradient of {jax.tree_util.keystr(path)} is not"


def _first_bad_leaf(tree: PyTree) -> str | None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if eqx.is_inexact_array(leaf) and not jnp.isfinite(leaf).all():
            return jax.tree_util.keystr(path)
    return None


def learner(evaluator: Evaluator, state: TrainState, stage: int) -> Learner:
    """The model after a stage, ready to be called."""
    trainer, stream = evaluator.trainer, evaluator.stream
    seen = trainer.task(stream, stage).seen
    model = trainer.model(state)
    return Learner(trainer.method, model, seen, trainer.recipe.images, stream.class_names)
