"""The values that packages pass to one another: batches of examples and their task."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

BatchSize = Any
"""The number of images in a batch: a whole number, or a symbol where `jax.export` traces a function
for any number of them."""


class RawBatch(eqx.Module):
    """Examples as the loader or a replay buffer gives them: pixels that are not prepared yet.

    Augmentation runs on the device, inside the compiled step, so uint8 is all that is sent.
    """

    image: UInt8[Array, "batch height width channel"]
    label: Int32[Array, " batch"]
    weight: Float32[Array, " batch"]
    """1 for an example, 0 for the padding of a last, partial batch. Every mean of the library is
    weighted by it, so no example is dropped and none counts twice."""
    query: Float32[Array, "known query"] | None = None
    """`AbstractMethod.query` of the first `known` examples, if it was computed before."""
    stored_logits: Float32[Array, "batch classes"] | None = None
    """Logits that a replay buffer kept with its examples; 0 for examples from elsewhere."""


class Batch(eqx.Module):
    """Examples as a method sees them: prepared images with everything that is known of them."""

    images: Float32[Array, "batch size size 3"]
    """Augmented (in training), resized and normalised."""
    label: Int32[Array, " batch"]
    weight: Float32[Array, " batch"]
    """1 for an example, 0 for padding."""
    query: Float32[Array, "batch query"]
    """`AbstractMethod.query` of the images; of width 0 if the method has no query."""
    raw: UInt8[Array, "batch height width channel"]
    """The pixels before preparation, for a replay buffer to keep."""
    is_new: Bool[Array, " batch"]
    """True if this is the first epoch that shows the example, so that a replay buffer is offered
    each image once."""
    stored_logits: Float32[Array, "batch classes"] | None = None
    """Logits that a replay buffer kept with its examples; 0 for examples from elsewhere."""
    is_replayed: Bool[Array, " batch"] | None = None
    """True for an example that was drawn from a replay buffer; None if there is none."""
    mixed_label: Int32[Array, " batch"] | None = None
    """The label of the example that each one is mixed with, under mixup or CutMix."""
    share: Float32[Array, " batch"] | None = None
    """How much of a mixed example is the example itself; the rest has the label `mixed_label`."""

    @property
    def main_label(self) -> Int32[Array, " batch"]:
        """The label that counts for the larger part of an example."""
        if self.mixed_label is None or self.share is None:
            return self.label
        return jnp.where(self.share < 0.5, self.mixed_label, self.label)


class Task(eqx.Module):
    """The current task as compiled steps see it: every field is a traced, strongly typed array.

    One executable therefore serves every task, whatever its number of classes or steps.
    """

    index: Int32[Array, ""]
    """Position in the stream, from 0."""
    classes: Bool[Array, " classes"]
    """The classes that the task contains."""
    seen: Bool[Array, " classes"]
    """The classes of this task and of all earlier ones."""
    competing: Bool[Array, " classes"]
    """The class mask: classes whose logits compete in the training loss. The task's own classes,
    unless earlier ones are replayed or `Recipe.class_mask` lets others compete."""
    steps: Int32[Array, ""]
    """Optimizer steps that this task takes; the learning-rate schedule runs over them."""
    examples: Int32[Array, ""]
    """Number of training examples of the task."""

    @classmethod
    def of(
        cls,
        index: int,
        classes: Iterable[int],
        *,
        num_classes: int,
        steps: int,
        seen: Iterable[int] | None = None,
        competing: Iterable[int] | None = None,
        examples: int = np.iinfo(np.int32).max,
    ) -> "Task":
        """Build a task from values on the host.

        Args:
            index: Position in the stream, from 0.
            classes: Ids of the classes that the task contains.
            num_classes: Number of classes of the whole stream.
            steps: Optimizer steps that the task takes.
            seen: Ids of the classes of this and all earlier tasks; `classes` if None.
            competing: Ids of the classes that compete in the loss; `classes` if None.
            examples: Number of training examples; more than any task has if not given.
        """
        classes = tuple(classes)
        own = class_mask(classes, num_classes)
        return cls(
            index=jnp.asarray(index, jnp.int32),
            classes=own,
            seen=own if seen is None else class_mask(seen, num_classes),
            competing=own if competing is None else class_mask(competing, num_classes),
            steps=jnp.asarray(steps, jnp.int32),
            examples=jnp.asarray(examples, jnp.int32),
        )


def class_mask(classes: Iterable[int], num_classes: int) -> Bool[Array, " classes"]:
    """A mask over all classes that is True at the given ids."""
    mask = np.zeros(num_classes, bool)
    mask[list(classes)] = True
    return jnp.asarray(mask, bool)
