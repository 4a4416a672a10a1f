"""What travels between the parts: batches, tasks, and how far a run has come."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8


class Batch(eqx.Module):
    """Examples as they reach the device: raw pixels, augmented inside the step.

    `weight` is 1 for an example and 0 for the padding of a last, partial batch; every
    mean of the library is weighted by it, so no example is dropped and none counts twice.
    Where mixup or CutMix is on, the step adds `other` and `share`.
    """

    image: UInt8[Array, "batch height width channel"]
    label: Int32[Array, " batch"]
    weight: Float32[Array, " batch"]
    other: Int32[Array, " batch"] | None = None
    """The label of the example that each one is mixed with."""
    share: Float32[Array, " batch"] | None = None
    """How much of a mixed example is its own: `other` counts for the rest."""
    remembered: Float32[Array, "batch classes"] | None = None
    """Logits that were stored with a replayed example; 0 for the others."""
    query: Float32[Array, "known query"] | None = None
    """`AbstractMethod.query` of the first examples, where it is kept from an earlier pass."""

    @property
    def main_label(self) -> Int32[Array, " batch"]:
        """The label that counts for most of an example."""
        if self.other is None or self.share is None:
            return self.label
        return jnp.where(self.share < 0.5, self.other, self.label)


class Task(eqx.Module):
    """What the compiled step knows of the current task: all of it traced, strongly typed.

    One executable therefore serves every task, whatever its number of classes or steps.
    """

    index: Int32[Array, ""]
    """Position in the stream, from 0."""
    classes: Bool[Array, " classes"]
    """The classes whose logits compete while this task is trained."""
    seen: Bool[Array, " classes"]
    """The classes of this task and of all earlier ones."""
    steps: Int32[Array, ""]
    """Optimizer steps that this task takes; the learning-rate schedule runs over them."""
    examples: Int32[Array, ""]
    """Training examples of the task: each is offered to a method's memory once, whatever the
    number of epochs."""

    @classmethod
    def of(
        cls,
        index: int,
        classes: Iterable[int],
        *,
        num_classes: int,
        steps: int,
        seen: Iterable[int] | None = None,
        examples: int = np.iinfo(np.int32).max,
    ) -> "Task":
        """Build a task from host values; `seen` defaults to the task's own classes, `examples`
        to more than any task has."""
        classes = tuple(classes)
        return cls(
            index=jnp.asarray(index, jnp.int32),
            classes=class_mask(classes, num_classes),
            seen=class_mask(classes if seen is None else seen, num_classes),
            steps=jnp.asarray(steps, jnp.int32),
            examples=jnp.asarray(examples, jnp.int32),
        )


def class_mask(classes: Iterable[int], num_classes: int) -> Bool[Array, " classes"]:
    """True at the given class ids."""
    mask = np.zeros(num_classes, bool)
    mask[list(classes)] = True
    return jnp.asarray(mask)


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: what its checkpoints are named after.

    `2` is the end of the second task, `2.40` is 40 steps into the third, and `2.90.trained` is
    where the third has been trained in 90 steps but not been measured.
    """

    stages: int
    """Tasks that are finished and measured."""
    step: int = 0
    """Steps taken in the task after them; 0 if it has not begun."""
    trained: bool = False
    """Whether that task has taken its last step, and the method has concluded it."""

    def __str__(self) -> str:
        step = f".{self.step}" if self.step or self.trained else ""
        return f"{self.stages}{step}{'.trained' if self.trained else ''}"

    @classmethod
    def of(cls, name: str) -> "Position | None":
        """The inverse of `str`; None for a name that is not of a checkpoint."""
        found = re.fullmatch(r"(\d+)(?:\.(\d+)(\.trained)?)?", name)
        return found and cls(int(found[1]), int(found[2] or 0), bool(found[3]))

    @property
    def between(self) -> bool:
        """Whether no task is under way."""
        return not self.step and not self.trained


START = Position(0)
"""Nothing done yet."""
