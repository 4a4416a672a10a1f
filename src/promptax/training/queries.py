"""Queries come from frozen weights, so those of an image that stays the same are computed once.

They are what prompts are chosen by, or, where the backbone is frozen, the features themselves.
Those of test images serve all evaluations of a run (see `Evaluator`), and those of a task's
training images all of its epochs, where no augmentation changes the images.
"""

from collections import deque
from collections.abc import Callable, Iterator

import equinox as eqx
import numpy as np
from jax.sharding import use_abstract_mesh
from jaxtyping import Array, Float32, PyTree

from promptax.core import sharding
from promptax.core.distributed import to_host
from promptax.core.types import Batch
from promptax.data.augment import prepare_eval
from promptax.data.loader import TestBatches, read_ahead
from promptax.data.stream import TaskStream
from promptax.training.train import Trainer

# Batches in flight before the host fetches one: enough to keep the device busy.
_IN_FLIGHT = 8


@eqx.filter_jit
def query_step(trainer: Trainer, params: PyTree, batch: Batch) -> Float32[Array, "batch query"]:
    """The compiled query of a batch, of test images or of training images as they are."""
    model = eqx.combine(params, trainer.frozen)
    images = prepare_eval(batch.image, trainer.recipe.images)
    with use_abstract_mesh(trainer.mesh.abstract_mesh):
        return trainer.method.query(model, images)


def training_queries(
    trainer: Trainer,
    params: PyTree,
    stream: TaskStream,
    stage: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Float32[np.ndarray, "examples query"] | None:
    """The queries of a stage's images, in their order; None where they are not kept.

    They are computed in batches of an evaluation, so that one compiled step serves both. Every
    process gets all of them, since its batches can have any example.
    """
    if not trainer.keeps_queries:
        return None
    index = stream.stages[stage].index
    batches = _batches(trainer, params, stream, stage, on_batch)
    return np.concatenate(list(batches))[: len(index)]


def _batches(
    trainer: Trainer,
    params: PyTree,
    stream: TaskStream,
    stage: int,
    on_batch: Callable[[], None],
) -> Iterator[np.ndarray]:
    size = sharding.round_up(trainer.recipe.protocol.batch_size, trainer.mesh)
    waiting = deque[Array]()
    for host in read_ahead(TestBatches(stream.train, stream.stages[stage].index, size)):
        on_batch()
        waiting.append(query_step(trainer, params, sharding.put_batch(host, trainer.mesh)))
        if len(waiting) > _IN_FLIGHT:
            yield to_host(waiting.popleft())
    yield from map(to_host, waiting)
