"""A replay buffer that lives on the device and is filled inside the compiled step."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray, UInt8

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.core.types import RawBatch
from promptax.data.stream import TaskStream

Kind = Literal["reservoir", "ring", "balanced"]


class Buffer(eqx.Module):
    """Raw images of earlier batches with their labels, and with logits if a method wants them.

    `reservoir` keeps a uniform sample of all examples that it was offered (Vitter, 1985).
    `ring` and `balanced` divide the slots evenly among the classes, and keep of each class the
    newest examples (Chaudhry et al., 2019, arXiv 1902.10486) or a uniform sample.
    """

    image: UInt8[Array, "capacity height width channel"]
    label: Int32[Array, " capacity"]
    logits: Float32[Array, "capacity classes"] | None
    offered: Int32[Array, " groups"]
    """Number of examples offered so far: in all (one group), or per class."""
    kind: Kind = eqx.field(static=True)

    @classmethod
    def empty(cls, replay: Replay, stream: TaskStream, *, logits: bool = False) -> "Buffer":
        """Make a buffer for the images of a stream.

        Args:
            replay: Size and kind of the buffer.
            stream: Gives the shape of images and the number of classes.
            logits: Keep logits with each example.

        Raises:
            UserError: The buffer is larger than the training data, smaller than what is drawn
                from it at once, or too small to have a slot for each class.
        """
        capacity = replay.capacity(stream.num_classes)
        _check_capacity(capacity, replay, stream)
        groups = 1 if replay.buffer_kind == "reservoir" else stream.num_classes
        image = stream.train[stream.tasks[0].index[:1]].shape[1:]
        return cls(
            image=jnp.zeros((capacity, *image), jnp.uint8),
            label=jnp.zeros(capacity, jnp.int32),
            logits=jnp.zeros((capacity, stream.num_classes)) if logits else None,
            offered=jnp.zeros(groups, jnp.int32),
            kind=replay.buffer_kind,
        )

    @property
    def quota(self) -> int:
        """Slots of a group; the slots of a group lie side by side."""
        return len(self.label) // len(self.offered)

    @property
    def filled(self) -> Bool[Array, " capacity"]:
        """Which slots hold an example."""
        slot = jnp.arange(len(self.label))
        # Slots that do not divide among the classes are behind the last group and stay empty.
        group = jnp.minimum(slot // self.quota, len(self.offered) - 1)
        return slot - group * self.quota < jnp.minimum(self.offered[group], self.quota)

    def add(
        self,
        image: UInt8[Array, "batch height width channel"],
        label: Int32[Array, " batch"],
        weight: Float[Array, " batch"],
        logits: Float[Array, "batch classes"],
        *,
        key: PRNGKeyArray,
    ) -> "Buffer":
        """Offer examples to the buffer, one after another.

        Args:
            image: Raw images.
            label: Their labels.
            weight: 1 for an example to offer, 0 for one to leave out.
            logits: Their logits; ignored by a buffer that keeps none.
            key: Decides which examples a reservoir keeps, and where.
        """
        group = jnp.zeros_like(label) if len(self.offered) == 1 else label
        real = weight > 0
        member = jax.nn.one_hot(group, len(self.offered), dtype=jnp.int32) * real[:, None]
        earlier_in_batch = jnp.cumsum(member, axis=0) - member
        number = self.offered[group] + earlier_in_batch[jnp.arange(len(group)), group]
        slot = group * self.quota + self._slot_in_group(number, key)
        kept = real & (slot < (group + 1) * self.quota)
        slot = _last_of_each(jnp.where(kept, slot, -1))
        # An index behind the end: `drop` leaves the example out.
        slot = jnp.where(slot < 0, len(self.label), slot)
        return Buffer(
            image=self.image.at[slot].set(image, mode="drop"),
            label=self.label.at[slot].set(label, mode="drop"),
            logits=None if self.logits is None else self.logits.at[slot].set(logits, mode="drop"),
            offered=self.offered + member.sum(0),
            kind=self.kind,
        )

    def sample(self, size: int, *, key: PRNGKeyArray) -> RawBatch:
        """Draw different examples at random; weight 0 for those that the buffer does not have."""
        filled = self.filled
        order = jnp.where(filled, jr.uniform(key, filled.shape), -1.0)
        chosen = jax.lax.top_k(order, size)[1]
        return self._rows(chosen, filled[chosen])

    def page(self, number: Int32[Array, ""], size: int, *, key: PRNGKeyArray) -> RawBatch:
        """Read one batch of a pass over the whole buffer.

        Args:
            number: Number of the batch in the pass, from 0.
            size: Examples of a batch.
            key: Decides the order of the pass; the same for all its batches.

        Returns:
            The batch; weight 0 behind the last example.
        """
        filled = self.filled
        order = jnp.argsort(jnp.where(filled, jr.uniform(key, filled.shape), 2.0))
        position = number * size + jnp.arange(size)
        slot = jnp.take(order, position, mode="clip")
        return self._rows(slot, filled[slot] & (position < len(order)))

    def pages(self, size: int) -> Int32[Array, ""]:
        """Number of batches of a pass over the whole buffer."""
        return -(-self.filled.sum(dtype=jnp.int32) // size)

    def _rows(self, slot: Int32[Array, " batch"], real: Bool[Array, " batch"]) -> RawBatch:
        return RawBatch(
            image=self.image[slot],
            label=self.label[slot],
            weight=real.astype(jnp.float32),
            stored_logits=None if self.logits is None else self.logits[slot],
        )

    def _slot_in_group(
        self, number: Int[Array, " batch"], key: PRNGKeyArray
    ) -> Int[Array, " batch"]:
        """The slot within its group for the n-th example offered; `quota` or more for none."""
        if self.kind == "ring":
            return number % self.quota
        drawn = jr.randint(key, number.shape, 0, number + 1)
        return jnp.where(number < self.quota, number, drawn)


def extend(batch: RawBatch, *recalled: RawBatch) -> RawBatch:
    """Put recalled batches behind a batch; its known queries stay those of its first examples."""
    parts = (batch, *recalled)
    stored = [part.stored_logits for part in recalled if part.stored_logits is not None]
    if stored:
        none_stored = jnp.zeros((len(batch.label), stored[0].shape[1]))
        stored_logits = jnp.concatenate([none_stored, *stored])
    else:
        stored_logits = None
    return RawBatch(
        image=jnp.concatenate([part.image for part in parts]),
        label=jnp.concatenate([part.label for part in parts]),
        weight=jnp.concatenate([part.weight for part in parts]),
        query=batch.query,
        stored_logits=stored_logits,
    )


def _check_capacity(capacity: int, replay: Replay, stream: TaskStream) -> None:
    examples = sum(len(task.index) for task in stream.tasks)
    if not 1 <= capacity <= examples:
        raise UserError(
            f"a buffer of {capacity} images; expected 1 to {examples}, which is all of the "
            f"training images of {stream.name}."
        )
    if replay.replay_batch > capacity:
        raise UserError(
            f"{replay.replay_batch} images cannot be drawn at once from a buffer of {capacity}: "
            "choose a smaller replay batch or a larger buffer."
        )
    if replay.buffer_kind != "reservoir" and capacity < stream.num_classes:
        raise UserError(
            f"a {replay.buffer_kind} buffer of {capacity} images has no slot for each of "
            f"{stream.num_classes} classes: choose a larger one, or a reservoir."
        )


def _last_of_each(slot: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """-1 for each slot that a later example of the batch takes, too.

    XLA does not say which of two writes to one slot wins in a scatter.
    """
    taken_later = jnp.triu(slot[:, None] == slot, 1).any(1)
    return jnp.where(taken_later, -1, slot)
