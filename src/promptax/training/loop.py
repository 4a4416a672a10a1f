"""Train a method on a stream: one task after another, measured after each.

A run is a generator of events. Whoever drives it (the command line, a notebook, a test) sees every
step, saves what it likes and stops when it likes; the loop itself knows nothing of files.
"""

import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from promptax.core.described import Described, Facts, in_percent
from promptax.data.stream import TaskStream
from promptax.training.evaluate import Evaluator, MeasureBatch, Measurement, protocol_names
from promptax.training.finite import check_steps, check_weights, skipped
from promptax.training.learner import Learner
from promptax.training.metrics import AccuracyMatrix
from promptax.training.position import START, StreamPosition
from promptax.training.query_pass import QueryBatch, training_queries
from promptax.training.state import Metrics, TrainState
from promptax.training.trainer import Trainer

LOOK_BACK = 16
"""The number of bad steps is read this many steps later, when the device is long done with them."""


@dataclass(frozen=True)
class StepDone:
    """Event: an optimizer step was taken."""

    state: TrainState
    """Donated by the next step: copy what is to be kept."""
    metrics: Metrics
    """Reading a value here waits for the device."""


@dataclass(frozen=True)
class TaskEnded:
    """Event: a task was trained and, unless `Evaluation.every` leaves it out, measured."""

    task_number: int
    """Number of the task, from 0."""
    state: TrainState
    measurement: Measurement | None
    """None if the task was not measured."""
    matrices: dict[str, AccuracyMatrix]
    """By protocol, all accuracies measured so far; `instance` is the headline."""
    train_seconds: float
    evaluate_seconds: float


Event = QueryBatch | StepDone | MeasureBatch | TaskEnded
"""In this order for each task: batches of the query pass, steps, batches of the evaluation, end."""


@dataclass(frozen=True, repr=False)
class Fit(Described):
    """The outcome of `fit`: the trained learner and its accuracies."""

    learner: Learner
    matrices: dict[str, AccuracyMatrix]
    """By protocol; `instance` is the headline."""

    def _facts(self) -> Facts:
        yield "method", type(self.learner.method).__name__
        yield "tasks", f"{len(self.matrix.values)}"
        for protocol, matrix in self.matrices.items():
            beside = "" if protocol == "instance" else f", {protocol}"
            yield f"average accuracy{beside}", in_percent(matrix.average_accuracy)
            yield f"forgetting{beside}", in_percent(matrix.forgetting)

    @property
    def matrix(self) -> AccuracyMatrix:
        """The headline: accuracies with each image by itself."""
        return self.matrices["instance"]


def empty_matrices(evaluator: Evaluator) -> dict[str, AccuracyMatrix]:
    """The matrices before anything is measured, under every protocol that is asked for."""
    stream = evaluator.stream
    examples = np.array([len(split.index) for split in stream.test_sets])
    empty = AccuracyMatrix.empty(
        len(stream.tasks), len(stream.test_sets), examples=examples, classes=stream.num_classes
    )
    return dict.fromkeys(protocol_names(evaluator.settings), empty)


def run_stream(
    trainer: Trainer,
    stream: TaskStream,
    state: TrainState,
    *,
    seed: int,
    start: StreamPosition = START,
    matrices: dict[str, AccuracyMatrix] | None = None,
    evaluator: Evaluator | None = None,
) -> Generator[Event, None, None]:
    """Train and measure all tasks from `start` on.

    Args:
        trainer: Takes the steps.
        stream: The tasks.
        state: The state at `start`; donated by the first step.
        seed: Seed of the order of examples.
        start: How far the run has come already.
        matrices: The accuracies measured up to `start`, by protocol; None if there are none yet.
        evaluator: Measures the state after each task, in the way that the trainer's recipe asks
            for if None.

    Raises:
        NonFinite: The loss was not finite. The end of the task has not been yielded.
    """
    evaluator = Evaluator(trainer, stream) if evaluator is None else evaluator
    matrices = empty_matrices(evaluator) if matrices is None else matrices
    for task_number in range(start.tasks, len(stream.tasks)):
        position = start if task_number == start.tasks else StreamPosition(task_number)
        began = time.monotonic()
        if not position.trained:
            state = yield from train_task(
                trainer, state, stream, task_number, seed=seed, start=position.step
            )
        trained = time.monotonic()
        measurement = None
        if evaluator.due(task_number):
            measurement = yield from evaluator.measure(state, task_number)
            matrices = _entered(matrices, task_number, measurement)
        yield TaskEnded(
            task_number=task_number,
            state=state,
            measurement=measurement,
            matrices=matrices,
            train_seconds=trained - began,
            evaluate_seconds=time.monotonic() - trained,
        )


def _entered(
    matrices: dict[str, AccuracyMatrix], task_number: int, measurement: Measurement
) -> dict[str, AccuracyMatrix]:
    """The matrices with what was measured after a task."""
    entered = {}
    for name, accuracies in measurement.accuracy.items():
        matrix = matrices[name].with_row(task_number, accuracies)
        if measurement.next_task is not None:
            matrix = matrix.with_next(task_number, measurement.next_task[name])
        entered[name] = matrix
    return entered


def train_task(
    trainer: Trainer,
    state: TrainState,
    stream: TaskStream,
    task_number: int,
    *,
    seed: int,
    start: int = 0,
) -> Generator[QueryBatch | StepDone, None, TrainState]:
    """Train one task, without evaluation.

    Args:
        trainer: The trainer.
        state: The state before the task, or within it.
        stream: The stream.
        task_number: Number of the task, from 0.
        seed: Seed of the order of examples.
        start: Steps of the task that were taken already.

    Returns:
        The state after the task.
    """
    task = trainer.task(stream, task_number)
    if not start:
        state = trainer.begin_task(state, task)
    queries = yield from training_queries(trainer, state.params, stream, task_number)
    faults = deque[Array]()
    for batch in trainer.batches(stream, task_number, seed=seed, start=start, queries=queries):
        state, metrics = trainer.step(state, batch, task)
        yield StepDone(state, metrics)
        faults.append(metrics.faults)
        if len(faults) > LOOK_BACK and int(faults.popleft()) > skipped(trainer):
            break
    state = trainer.review(state, task)
    check_steps(trainer, state, task_number)
    state = trainer.end_task(trainer.observe(state, stream, task_number), task)
    check_weights(state, task_number)
    return state


def make_learner(
    trainer: Trainer, stream: TaskStream, state: TrainState, task_number: int
) -> Learner:
    """Make the learner of a state after a task, ready to be called.

    Args:
        trainer: The trainer that the state belongs to.
        stream: The tasks.
        state: The state after the task; the learner shares its arrays.
        task_number: Number of the task, from 0. Only classes seen up to it are predicted.
    """
    return Learner(
        method=trainer.method,
        model=trainer.model(state),
        state=state.method_state,
        seen=trainer.task(stream, task_number).seen,
        images=trainer.recipe.images,
        class_names=stream.class_names,
    )
