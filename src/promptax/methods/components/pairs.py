"""Bookkeeping of statistics of a class in a task, for streams in which classes come again."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from promptax.core.types import Task
from promptax.data.stream import TaskStream


class Pairs(eqx.Module):
    """The pairs of a task and a class that have been learned.

    Pair number `task * classes + class` is that of a class in a task. Each pair has a slot for its
    statistics, and slots are filled in the order in which pairs come: if tasks have classes of
    their own, there are far fewer pairs in a stream than combinations.
    """

    known: Bool[Array, "tasks classes"]
    """The pairs that have been learned."""
    pair: Int32[Array, " slots"]
    """The pair of each slot."""
    used: Int32[Array, ""]
    """Number of slots of the tasks that have been learned."""

    @classmethod
    def empty(cls, stream: TaskStream) -> "Pairs":
        """No pair, and a slot for each one to come."""
        slots = sum(len(task.classes) for task in stream.tasks)
        return cls(
            known=jnp.zeros((len(stream.tasks), stream.num_classes), bool),
            pair=jnp.zeros(slots, jnp.int32),
            used=jnp.zeros((), jnp.int32),
        )

    @property
    def class_of_slot(self) -> Int32[Array, " slots"]:
        """The class of the pair in each slot."""
        return self.pair % self.known.shape[1]

    def number(self, task: Task) -> Int32[Array, " classes"]:
        """The pair of each class with the current task."""
        classes = self.known.shape[1]
        return task.index * classes + jnp.arange(classes, dtype=jnp.int32)

    def slot(self, task: Task) -> Int32[Array, " classes"]:
        """The slot of each class of the current task; behind the last one for other classes."""
        position = self.used + jnp.cumsum(task.classes, dtype=jnp.int32) - 1
        return jnp.where(task.classes, position, len(self.pair))

    def after(self, task: Task) -> "Pairs":
        """The pairs with those of the task that ends."""
        return Pairs(
            known=self.known.at[task.index].set(task.classes),
            pair=self.pair.at[self.slot(task)].set(self.number(task), mode="drop"),
            used=self.used + task.classes.sum(dtype=jnp.int32),
        )
