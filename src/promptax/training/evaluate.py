"""Evaluation: whole test sets, every image by itself, with one compiled step for all of them."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Array, Bool, Float32, Int, Int32, PyTree

from promptax.core import sharding
from promptax.core.described import Described, Facts
from promptax.core.errors import UserError
from promptax.core.settings import Evaluation
from promptax.core.types import RawBatch, class_mask
from promptax.data.augment import prepare_eval
from promptax.data.loader import TestBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.methods.components.pool import AbstractPoolMethod
from promptax.methods.rehearsal import unwrapped
from promptax.nn.prompt import Vote
from promptax.training.state import TrainState
from promptax.training.steps import Setup, query_step
from promptax.training.trainer import Trainer

IN_FLIGHT = 8
"""Evaluation steps in flight before the host waits: enough to keep the device busy, few enough
that their images do not fill its memory."""


@dataclass(frozen=True)
class MeasureBatch:
    """Event: a batch of an evaluation is about to be computed."""

    state: TrainState
    """The state that is measured."""


class Masks(eqx.Module):
    """The classes that compete in an evaluation."""

    allowed: Bool[Array, " classes"]
    """Under the class-incremental protocol."""
    of_tasks: Bool[Array, "tasks classes"]
    """The classes of each task: they compete if the task is known."""
    task: Int32[Array, " batch"]
    """The task of each image."""


class Scored(eqx.Module):
    """The result of one evaluation step for each image, padding included."""

    predicted: Int32[Array, "batch protocols"]
    """The class chosen under each protocol, in the order of `protocol_names`."""
    selected: Int32[Array, "batch top_k"]
    """The prompts that each image was given; `top_k` is 0 for a method that does not choose."""


@dataclass(frozen=True, repr=False)
class Measurement(Described):
    """The tasks evaluated after one stage."""

    accuracy: dict[str, np.ndarray]
    """By protocol, the accuracy on each task, in [0, 1]; `instance` is the headline."""
    predicted: tuple[np.ndarray, ...]
    """Per task, the class given to every test image (`instance`)."""
    selected: tuple[np.ndarray, ...]
    """Per task, the prompts given to every test image, `[images, top_k]`."""
    next_task: dict[str, float] | None = None
    """By protocol, the accuracy on the test set of the next task, in [0, 1]; None if it is not
    measured, as in class-incremental streams."""

    def _facts(self) -> Facts:
        yield "test images", f"{sum(map(len, self.predicted)):,} in {len(self.predicted)} test sets"
        for protocol, accuracies in self.accuracy.items():
            cells = " ".join(f"{100 * value:.2f}" for value in accuracies)
            yield f"{protocol} (%)", f"{cells}, average {100 * np.mean(accuracies):.2f}"
        for protocol, accuracy in (self.next_task or {}).items():
            yield f"{protocol}, next task (%)", f"{100 * accuracy:.2f}"


@dataclass(frozen=True)
class Layout:
    """All test images of a stream in evaluation order.

    Where groups vote, each task is padded to whole groups, so that no group spans two tasks.
    """

    index: Int[np.ndarray, " rows"]
    """Positions in the source; -1 for padding."""
    task: Int32[np.ndarray, " rows"]
    """The task that a row belongs to."""
    stops: tuple[int, ...]
    """Where each task ends."""

    @classmethod
    def of(cls, stream: TaskStream, group: int | None) -> "Layout":
        """Lay the tasks of a stream out one after another."""
        rows = []
        for split in stream.test_sets:
            padding = -len(split.index) % (group or 1)
            rows.append(np.concatenate([split.index, np.full(padding, -1)]))
        lengths = [len(row) for row in rows]
        task = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        return cls(np.concatenate(rows), task, tuple(np.cumsum(lengths).tolist()))

    def rows(self, task: int) -> Int[np.ndarray, " rows"]:
        """The rows of a task's images, without padding."""
        return np.flatnonzero((self.task == task) & (self.index >= 0))


class Evaluator:
    """Measures states of a trainer on the test sets of a stream.

    Queries come from frozen weights, so they are computed when they are first needed, and kept.

    Raises:
        UserError: A vote was asked for with a method that has no prompt pool, or with a batch that
            does not divide over the devices.
    """

    def __init__(self, trainer: Trainer, stream: TaskStream):
        self.trainer = trainer
        self.stream = stream
        self.settings = trainer.recipe.evaluation
        self.batch_size = self.settings.batch_size
        group = self.settings.vote_group
        if group is None:
            # Nothing depends on the batch, so it may grow to suit the devices.
            self.batch_size = sharding.round_up(self.batch_size, trainer.mesh)
        elif not can_vote(trainer.method):
            name = type(trainer.method).__name__
            raise UserError(f"{name} has no prompt pool, so images cannot vote on prompts.")
        sharding.check_divides(self.batch_size, trainer.mesh, "the evaluation batch size")
        self._setup = trainer.setup.for_evaluation()
        self._layout = Layout.of(stream, group)
        masks = [class_mask(split.classes, stream.num_classes) for split in stream.test_sets]
        self._task_classes = sharding.replicate(jnp.stack(masks), trainer.mesh)
        self._queries: list[Array] = []

    def due(self, task_number: int) -> bool:
        """Whether the settings ask for a measurement after a task."""
        number = task_number + 1
        return number % self.settings.every == 0 or number == len(self.stream.tasks)

    def __call__(self, state: TrainState, task_number: int) -> Measurement:
        """Evaluate a state on the tasks seen so far, and on the next one where
        `TaskStream.next_test_set` has one."""
        measuring = self.measure(state, task_number)
        while True:
            try:
                next(measuring)
            except StopIteration as stop:
                return stop.value

    def measure(
        self, state: TrainState, task_number: int
    ) -> Generator[MeasureBatch, None, Measurement]:
        """Evaluate as `__call__` does, and yield an event before every batch."""
        competing = self._competing(task_number)
        tasks = len(self.stream.evaluated(task_number))
        looks_ahead = self.stream.next_test_set(task_number) is not None
        options = (self.settings.vote_group, self.settings.task_incremental)
        scored: list[Scored] = []
        for batch, task in self._batches(self._layout.stops[tasks - 1 + looks_ahead]):
            yield MeasureBatch(state)
            query = self._query(len(scored), state.params, batch)
            masks = Masks(competing, self._task_classes, task)
            inputs = (self._setup, state.params, state.method_state)
            scored.append(evaluation_step(*inputs, batch, query, masks, *options))
            jax.block_until_ready(scored[-IN_FLIGHT:][0])
        return self._collect(scored, tasks, looks_ahead)

    def _competing(self, task_number: int) -> Bool[Array, " classes"]:
        count = self.stream.num_classes
        classes = range(count) if self.settings.classes == "all" else self.stream.seen(task_number)
        return sharding.replicate(class_mask(classes, count), self.trainer.mesh)

    def _batches(self, stop: int) -> Iterator[tuple[RawBatch, Int32[Array, " batch"]]]:
        """Batches up to row `stop`, cut from all rows, so that each is the same at every stage."""
        size = self.batch_size
        mesh = self.trainer.mesh
        batches = TestBatches(self.stream.test, self._layout.index, size)
        tasks = np.pad(self._layout.task, (0, -len(self._layout.task) % size)).reshape(-1, size)
        for host, task in zip(read_ahead(batches, stop=-(-stop // size)), tasks, strict=False):
            yield sharding.put_batch(host, mesh), sharding.from_host(task, sharding.split(mesh))

    def _query(self, number: int, params: PyTree, batch: RawBatch) -> Float32[Array, "batch query"]:
        if number == len(self._queries):
            self._queries.append(query_step(self._setup, params, batch))
        return self._queries[number]

    def _collect(self, scored: list[Scored], tasks: int, looks_ahead: bool) -> Measurement:
        gathered = [_to_host(step) for step in scored]
        predicted = np.concatenate([step.predicted for step in gathered])
        selected = np.concatenate([step.selected for step in gathered])
        rows = [self._layout.rows(task) for task in range(tasks + looks_ahead)]
        labels = self.stream.test.labels
        hits = [(predicted[row] == labels[self._layout.index[row], None]).mean(0) for row in rows]
        accuracy = dict(zip(protocol_names(self.settings), np.stack(hits, axis=1), strict=True))
        next_task = None
        if looks_ahead:
            next_task = {protocol: float(values[tasks]) for protocol, values in accuracy.items()}
        return Measurement(
            {protocol: values[:tasks] for protocol, values in accuracy.items()},
            predicted=tuple(predicted[row, 0] for row in rows[:tasks]),
            selected=tuple(selected[row] for row in rows[:tasks]),
            next_task=next_task,
        )


def can_vote(method: AbstractMethod) -> bool:
    """Whether images can vote on prompts: whether the method has a prompt pool."""
    inner = unwrapped(method)
    return isinstance(inner, AbstractPoolMethod) and inner.has_pool


@eqx.filter_jit
def evaluation_step(
    setup: Setup,
    params: PyTree,
    method_state: PyTree,
    batch: RawBatch,
    query: Float32[Array, "batch query"],
    masks: Masks,
    vote_group: int | None = None,
    task_incremental: bool = False,
) -> Scored:
    """Evaluate a batch under every protocol that is asked for.

    Args:
        setup: What every step reads.
        params: The trained leaves.
        method_state: The state of the method.
        batch: Raw test images.
        query: Their queries.
        masks: The classes that compete.
        vote_group: Add the prediction in which so many consecutive images vote on their prompts.
        task_incremental: Add the prediction in which the task of each image is known.
    """
    model = setup.model(params)
    images = prepare_eval(batch.image, setup.images)
    choose = lambda logits, mask: jnp.where(mask, logits, -jnp.inf).argmax(1)
    with setup.on_mesh():
        prediction = setup.method.predict(model, method_state, images, query)
        predicted = [choose(prediction.logits, masks.allowed)]
        if vote_group is not None:
            voter = unwrapped(setup.method)
            assert isinstance(voter, AbstractPoolMethod), "checked by `Evaluator`"
            vote = Vote(batch.weight, vote_group)
            voted = voter.predict_by_vote(model, images, query, vote)
            predicted.append(choose(voted.logits, masks.allowed))
    if task_incremental:
        predicted.append(choose(prediction.logits, masks.of_tasks[masks.task]))
    selected = prediction.selected
    if selected is None:
        selected = jnp.zeros((len(images), 0), jnp.int32)
    return Scored(jnp.stack(predicted, axis=1).astype(jnp.int32), selected)


def protocol_names(settings: Evaluation) -> tuple[str, ...]:
    """The protocols that are measured, in the order of the columns of `Scored.predicted`."""
    options = {
        "vote": settings.vote_group is not None,
        "task_incremental": settings.task_incremental,
    }
    return ("instance", *(name for name, on in options.items() if on))


def _to_host(scored: Scored) -> Scored:
    gathered = process_allgather(scored, tiled=True) if jax.process_count() > 1 else scored
    return jax.tree.map(np.asarray, gathered)
