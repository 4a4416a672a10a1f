"""Evaluation: the whole test set, every image by itself, one compiled pass over all tasks seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import use_abstract_mesh
from jaxtyping import Array, Bool, Float32, Int, Int32, PyTree

from promptax.core import sharding
from promptax.core.errors import UserError
from promptax.core.settings import Protocol
from promptax.core.types import Batch, class_mask
from promptax.data.augment import prepare_eval
from promptax.data.loader import TestBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.nn.prompt import Vote
from promptax.training.queries import query_step
from promptax.training.train import Trainer

# Evaluation steps in flight before the host waits: enough to keep the device busy, few
# enough that their images do not fill its memory.
_IN_FLIGHT = 8


class Masks(eqx.Module):
    """Which classes compete."""

    allowed: Bool[Array, " classes"]
    """Under the class-incremental protocol."""
    of_tasks: Bool[Array, "tasks classes"]
    """Of each task: what competes where the task is known."""
    task: Int32[Array, " batch"]
    """The task of each image."""


class Scored(eqx.Module):
    """What one evaluation step says of each image; padding included."""

    predicted: Int32[Array, "batch protocols"]
    """The class chosen under each protocol, in the order of `protocol_names`."""
    selected: Int32[Array, "batch top_k"]
    """The prompts that each image was given."""


@dataclass(frozen=True)
class Evaluation:
    """The tasks evaluated after one stage."""

    accuracy: dict[str, np.ndarray]
    """By protocol, the accuracy on each task, in [0, 1]; `instance` is the headline."""
    predicted: tuple[np.ndarray, ...]
    """Of each task, the class given to every test image (`instance`)."""
    selected: tuple[np.ndarray, ...]
    """Of each task, the prompts given to every test image, `[images, top_k]`."""


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
        for split in stream.tasks:
            padding = -len(split.index) % (group or 1)
            rows.append(np.concatenate([split.index, np.full(padding, -1)]))
        lengths = [len(row) for row in rows]
        task = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        return cls(np.concatenate(rows), task, tuple(np.cumsum(lengths).tolist()))

    def rows(self, task: int) -> Int[np.ndarray, " rows"]:
        """The rows of a task's images, without padding."""
        return np.flatnonzero((self.task == task) & (self.index >= 0))


class Evaluator:
    """Measures a trainer's model on the test tasks of a stream.

    Queries come from frozen weights, so they are computed at the first need and kept.
    Raises `UserError` for a vote with a method that has no pool, or a voting batch that does
    not divide over the devices.
    """

    def __init__(self, trainer: Trainer, stream: TaskStream):
        self.trainer, self.stream = trainer, stream
        self.protocol = trainer.recipe.protocol
        group, self.batch_size = self.protocol.vote_group, self.protocol.batch_size
        if group is None:
            # Nothing depends on the batch, so it may grow to suit the devices.
            self.batch_size = sharding.round_up(self.batch_size, trainer.mesh)
        elif not trainer.method.votes:
            raise UserError(f"{type(trainer.method).__name__} has no pool, so nothing can vote.")
        sharding.check_divides(self.batch_size, trainer.mesh, "the evaluation batch size")
        self._layout = Layout.of(stream, group)
        masks = [class_mask(split.classes, stream.num_classes) for split in stream.tasks]
        self._task_classes = sharding.replicate(jnp.stack(masks), trainer.mesh)
        self._queries: list[Array] = []

    def due(self, stage: int) -> bool:
        """Whether the protocol measures after a stage."""
        number = stage + 1
        return number % self.protocol.every == 0 or number == len(self.stream.stages)

    def __call__(
        self, params: PyTree, stage: int, *, on_batch: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Evaluate the tasks seen after a stage with these trained leaves."""
        classes = range(self.stream.num_classes)
        classes = classes if self.protocol.classes == "all" else self.stream.seen(stage)
        allowed = class_mask(classes, self.stream.num_classes)
        allowed = sharding.replicate(allowed, self.trainer.mesh)
        tasks = len(self.stream.evaluated(stage))
        scored: list[Scored] = []
        for batch, task in self._batches(self._layout.stops[tasks - 1]):
            on_batch()
            query = self._query(len(scored), params, batch)
            masks = Masks(allowed, self._task_classes, task)
            scored.append(evaluation_step(self.trainer, params, batch, query, masks))
            jax.block_until_ready(scored[-_IN_FLIGHT:][0])
        return self._collect(scored, tasks)

    def _batches(self, stop: int) -> Iterator[tuple[Batch, Int32[Array, " batch"]]]:
        """Batches up to row `stop`, cut from all rows, so that each is the same at every stage."""
        size, mesh = self.batch_size, self.trainer.mesh
        batches = TestBatches(self.stream.test, self._layout.index, size)
        tasks = np.pad(self._layout.task, (0, -len(self._layout.task) % size)).reshape(-1, size)
        for host, task in zip(read_ahead(batches, stop=-(-stop // size)), tasks, strict=False):
            yield sharding.put_batch(host, mesh), sharding.from_host(task, sharding.split(mesh))

    def _query(self, number: int, params: PyTree, batch: Batch) -> Float32[Array, "batch query"]:
        if number == len(self._queries):
            self._queries.append(query_step(self.trainer, params, batch))
        return self._queries[number]

    def _collect(self, scored: list[Scored], tasks: int) -> Evaluation:
        gathered = [_to_host(step) for step in scored]
        predicted = np.concatenate([step.predicted for step in gathered])
        selected = np.concatenate([step.selected for step in gathered])
        rows = [self._layout.rows(task) for task in range(tasks)]
        labels = self.stream.test.labels
        hits = [(predicted[row] == labels[self._layout.index[row], None]).mean(0) for row in rows]
        accuracy = dict(zip(protocol_names(self.protocol), np.stack(hits, axis=1), strict=True))
        return Evaluation(
            accuracy,
            tuple(predicted[row, 0] for row in rows),
            tuple(selected[row] for row in rows),
        )


@eqx.filter_jit
def evaluation_step(
    trainer: Trainer,
    params: PyTree,
    batch: Batch,
    query: Float32[Array, "batch query"],
    masks: Masks,
) -> Scored:
    """The compiled evaluation of a batch, under every protocol that is asked for."""
    protocol, model = trainer.recipe.protocol, eqx.combine(params, trainer.frozen)
    images = prepare_eval(batch.image, trainer.recipe.images)
    vote = None if protocol.vote_group is None else Vote(batch.weight, protocol.vote_group)
    with use_abstract_mesh(trainer.mesh.abstract_mesh):
        prediction = trainer.method.predict(model, images, query)
        voted = vote and trainer.method.predict(model, images, query, vote=vote)
    choose = lambda logits, mask: jnp.where(mask, logits, -jnp.inf).argmax(1)
    predicted = [choose(prediction.logits, masks.allowed)]
    if voted is not None:
        predicted.append(choose(voted.logits, masks.allowed))
    if protocol.task_incremental:
        predicted.append(choose(prediction.logits, masks.of_tasks[masks.task]))
    return Scored(jnp.stack(predicted, axis=1).astype(jnp.int32), prediction.selected)


def protocol_names(protocol: Protocol) -> tuple[str, ...]:
    """The columns of `Scored.predicted`."""
    options = {
        "vote": protocol.vote_group is not None,
        "task_incremental": protocol.task_incremental,
    }
    return ("instance", *(name for name, on in options.items() if on))


def _to_host(scored: Scored) -> Scored:
    gathered = process_allgather(scored, tiled=True) if jax.process_count() > 1 else scored
    return jax.tree.map(np.asarray, gathered)
