"""A replay buffer that lives on the device and is filled inside the compiled step."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray, UInt8

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.core.types import Batch
from promptax.data.stream import TaskStream

Kind = Literal["reservoir", "ring", "balanced"]


class Buffer(eqx.Module):
    """Raw images of earlier batches with their labels, and logits where a method wants them.

    `reservoir` keeps a uniform sample of all examples that it was offered (Vitter, 1985).
    `ring` and `balanced` divide the slots evenly among the classes, and keep of each the newest
    (Chaudhry et al., 2019, arXiv 1902.10486) or a uniform sample.
    """

    image: UInt8[Array, "capacity height width channel"]
    label: Int32[Array, " capacity"]
    logits: Float32[Array, "capacity classes"] | None
    offered: Int32[Array, " groups"]
    """Examples offered so far: of all classes together, or of each."""
    kind: Kind = eqx.field(static=True)

    @classmethod
    def empty(cls, replay: Replay, stream: TaskStream, *, logits: bool = False) -> "Buffer":
        """A buffer for the images of a stream.

        Raises `UserError` for one that is larger than the training data, smaller than what is
        drawn from it at once, or too small for a slot of each class.
        """
        capacity = _capacity(replay, stream)
        groups = 1 if replay.buffer_kind == "reservoir" else stream.num_classes
        image = stream.train[stream.stages[0].index[:1]].shape[1:]
        return cls(
            jnp.zeros((capacity, *image), jnp.uint8),
            jnp.zeros(capacity, jnp.int32),
            jnp.zeros((capacity, stream.num_classes)) if logits else None,
            jnp.zeros(groups, jnp.int32),
            replay.buffer_kind,
        )

    @property
    def quota(self) -> int:
        """Slots of a group; a group's slots lie side by side."""
        return len(self.label) // len(self.offered)

    @property
    def filled(self) -> Bool[Array, " capacity"]:
        """Which slots hold an example."""
        slot = jnp.arange(len(self.label))
        group = jnp.minimum(slot // self.quota, len(self.offered) - 1)
        return slot - group * self.quota < jnp.minimum(self.offered[group], self.quota)

    def add(
        self, batch: Batch, logits: Float[Array, "batch classes"], *, key: PRNGKeyArray
    ) -> "Buffer":
        """Offer the examples of weight 1, one after another."""
        group = jnp.zeros_like(batch.label) if len(self.offered) == 1 else batch.label
        real = batch.weight > 0
        member = jax.nn.one_hot(group, len(self.offered), dtype=jnp.int32) * real[:, None]
        number = (
            self.offered[group] + (jnp.cumsum(member, 0) - member)[jnp.arange(len(group)), group]
        )
        slot = group * self.quota + self._place(number, key)
        slot = _last_of_each(jnp.where(real & (slot < (group + 1) * self.quota), slot, -1))
        slot = jnp.where(slot < 0, len(self.label), slot)  # outside: `drop` leaves it out
        return Buffer(
            self.image.at[slot].set(batch.image, mode="drop"),
            self.label.at[slot].set(batch.label, mode="drop"),
            None if self.logits is None else self.logits.at[slot].set(logits, mode="drop"),
            self.offered + member.sum(0),
            self.kind,
        )

    def sample(self, size: int, *, key: PRNGKeyArray) -> Batch:
        """Different examples at random; of weight 0 where there are not so many."""
        filled = self.filled
        order = jnp.where(filled, jr.uniform(key, filled.shape), -1.0)
        chosen = jax.lax.top_k(order, size)[1]
        return self._rows(chosen, filled[chosen])

    def page(self, number: Int32[Array, ""], size: int, *, key: PRNGKeyArray) -> Batch:
        """The batch of a number in a pass over all examples, whose order the key says; of weight
        0 behind the last of them."""
        filled = self.filled
        order = jnp.argsort(jnp.where(filled, jr.uniform(key, filled.shape), 2.0))
        place = number * size + jnp.arange(size)
        slot = jnp.take(order, place, mode="clip")
        return self._rows(slot, filled[slot] & (place < len(order)))

    def pages(self, size: int) -> Int32[Array, ""]:
        """How many batches a pass has."""
        return -(-self.filled.sum(dtype=jnp.int32) // size)

    def _rows(self, slot: Int32[Array, " batch"], real: Bool[Array, " batch"]) -> Batch:
        return Batch(
            self.image[slot],
            self.label[slot],
            real.astype(jnp.float32),
            remembered=None if self.logits is None else self.logits[slot],
        )

    def _place(self, number: Int[Array, " batch"], key: PRNGKeyArray) -> Int[Array, " batch"]:
        """The place in its group for the example of a number; the quota or above: none."""
        if self.kind == "ring":
            return number % self.quota
        drawn = jr.randint(key, number.shape, 0, number + 1)
        return jnp.where(number < self.quota, number, drawn)


def extend(batch: Batch, *recalled: Batch) -> Batch:
    """A batch with others behind it."""
    parts = (batch, *recalled)
    join = lambda leaf: jnp.concatenate([leaf(part) for part in parts])
    logits = [part.remembered for part in recalled if part.remembered is not None]
    absent = [jnp.zeros((len(batch.label), logits[0].shape[1]))] if logits else []
    return Batch(
        join(lambda part: part.image),
        join(lambda part: part.label),
        join(lambda part: part.weight),
        remembered=jnp.concatenate([*absent, *logits]) if logits else None,
        query=batch.query,
    )


def _capacity(replay: Replay, stream: TaskStream) -> int:
    capacity, examples = (
        replay.capacity(stream.num_classes),
        sum(len(stage.index) for stage in stream.stages),
    )
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
    return capacity


def _last_of_each(slot: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """-1 for each slot that a later example takes: what a scatter would do with both is open."""
    later = jnp.triu(slot[:, None] == slot, 1).any(1)
    return jnp.where(later, -1, slot)
