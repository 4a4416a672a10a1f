"""Evaluation: the whole test set, every image by itself, one compiled pass over all tasks seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Array, Bool, Float32, Int, PyTree

from promptax import sharding
from promptax.config import Protocol
from promptax.data.augment import prepare_eval
from promptax.data.loader import TestBatches, read_ahead
from promptax.data.stream import Split, TaskStream
from promptax.errors import UserError
from promptax.method import AbstractMethod
from promptax.nn.prompt import Vote
from promptax.train import Trainer
from promptax.types import Batch, class_mask


class Scored(eqx.Module):
    """What one evaluation step says of each image; padding included."""

    predicted: Int[Array, "protocols batch"]
    """The class chosen under each protocol, in the order of `Evaluator.protocols`."""
    selected: Int[Array, "batch top_k"]
    """The prompts that each image was given."""


@dataclass(frozen=True)
class Evaluation:
    """The tasks evaluated after one stage."""

    accuracy: dict[str, np.ndarray]
    """By protocol, the accuracy on each task; `instance` is the headline."""
    predicted: dict[str, np.ndarray]
    """By protocol, the class given to every test image, task by task in stream order."""
    usage: np.ndarray
    """`[tasks, pool]`: the share of each prompt among those given to a task's images."""


@dataclass(frozen=True)
class Evaluator:
    """Measures a trainer's model on a stream's test tasks.

    Queries come from frozen weights, so they are computed at the first need and kept.
    Raises `UserError` for a vote with a method that has no pool, or a batch that does not
    divide over the devices.
    """

    trainer: Trainer
    stream: TaskStream
    protocol: Protocol = field(default_factory=Protocol)
    _queries: list[Array] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if self.protocol.vote_group is not None and not self.trainer.method.votes:
            name = type(self.trainer.method).__name__
            raise UserError(f"{name} has no prompt pool, so there is no vote to evaluate.")
        sharding.check_divides(self.batch_size, self.trainer.mesh, "the evaluation batch size")

    @property
    def batch_size(self) -> int:
        """The protocol's batch, rounded up to the number of devices where nothing votes."""
        devices = self.trainer.mesh.shape["data"]
        size = self.protocol.batch_size
        return size if self.protocol.vote_group is not None else -(-size // devices) * devices

    @property
    def protocols(self) -> tuple[str, ...]:
        """What is measured: `instance` and the labelled options."""
        beside = {"vote": self.protocol.vote_group, "task_incremental": self.protocol.task_incremental}
        return ("instance", *(name for name, on in beside.items() if on))

    def __call__(self, params: PyTree, stage: int) -> Evaluation:
        """Evaluate the tasks seen after a stage, given the trained leaves."""
        tasks = self.stream.evaluated(stage)
        count = sum(len(span) for span in self._spans[: len(tasks)])
        scored = [
            train_step_free(self, params, number, stage)
            for number in range(-(-count // self.batch_size))
        ]
        return self._collect(scored, tasks)
