"""Queries come from frozen weights, so those of an image that stays the same are computed once.

Prompts are chosen by them; if the backbone is frozen, they are the features themselves. Those of
test images serve all evaluations of a run (see `Evaluator`), and those of a task's training images
all of its epochs, unless augmentation changes the images.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float32, PyTree

from promptax.core import sharding
from promptax.core.distributed import to_host
from promptax.data.loader import TestBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.training.steps import query_step
from promptax.training.trainer import Trainer

IN_FLIGHT = 8
"""Batches in flight before the host fetches one: enough to keep the device busy."""


@dataclass(frozen=True)
class QueryBatch:
    """Event: a batch of the pass that computes the queries of a task's training images."""


def training_queries(
    trainer: Trainer, params: PyTree, stream: TaskStream, task_number: int
) -> Generator[QueryBatch, None, Float32[np.ndarray, "examples query"] | None]:
    """Compute the queries of a task's training images.

    They are computed in batches of an evaluation, so that one compiled step serves both. Every
    process gets all of them, since its batches can have any example.

    Args:
        trainer: The trainer.
        params: The trained leaves.
        stream: The stream.
        task_number: Number of the task, from 0.

    Yields:
        An event before every batch.

    Returns:
        The queries in the order of the task's images; None if they are not kept.
    """
    if not trainer.keeps_queries:
        return None
    setup = trainer.setup.for_evaluation()
    index = stream.tasks[task_number].index
    size = sharding.round_up(trainer.recipe.evaluation.batch_size, trainer.mesh)
    waiting = deque[Array]()
    done: list[np.ndarray] = []
    for host in read_ahead(TestBatches(stream.train, index, size)):
        yield QueryBatch()
        waiting.append(query_step(setup, params, sharding.put_batch(host, trainer.mesh)))
        if len(waiting) > IN_FLIGHT:
            done.append(to_host(waiting.popleft()))
    done += [to_host(queries) for queries in waiting]
    return np.concatenate(done)[: len(index)]
