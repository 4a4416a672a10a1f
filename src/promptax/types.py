"""The arrays that travel between loader, step and methods."""

from collections.abc import Iterable

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

    @classmethod
    def of(
        cls,
        index: int,
        classes: Iterable[int],
        *,
        num_classes: int,
        steps: int,
        seen: Iterable[int] | None = None,
    ) -> "Task":
        """Build a task from host values; `seen` defaults to the task's own classes."""
        classes = tuple(classes)
        return cls(
            index=jnp.asarray(index, jnp.int32),
            classes=class_mask(classes, num_classes),
            seen=class_mask(classes if seen is None else seen, num_classes),
            steps=jnp.asarray(steps, jnp.int32),
        )


def class_mask(classes: Iterable[int], num_classes: int) -> Bool[Array, " classes"]:
    """True at the given class ids."""
    mask = np.zeros(num_classes, bool)
    mask[list(classes)] = True
    return jnp.asarray(mask)
