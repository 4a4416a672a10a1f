"""Dark experience replay, DER and DER++ (Buzzega et al., NeurIPS 2020, arXiv 2004.07211).

The buffer keeps with an image the logits z that the model gave it when it was stored. Each step
draws from it twice (section 3; with beta = 0 it is DER):

    loss = CE(h(x), y) + alpha * |h(x') - z'|^2 + beta * CE(h(x''), y'')

As in the authors' code (Mammoth), the square is a mean over images and all classes, where the paper
writes a norm, and each term is a mean of its own. Unlike there, an image is offered to the buffer
once, after the first step that used it, and not in every epoch; and classes that no task has shown
yet do not compete.
"""

import math

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractFinetuned,
    AbstractRehearsal,
    ModelImages,
    Scores,
    masked_cross_entropy,
    weighted_mean,
)
from promptax.methods.components.buffer import Buffer, extend
from promptax.nn.classifier import Classifier


class DERPP(AbstractRehearsal, AbstractFinetuned):
    """Dark experience replay: earlier images keep their logits (DER++; DER with beta 0)."""

    alpha: float = 0.1
    """Weight of the distance to the stored logits."""
    beta: float = 0.5
    """Weight of the cross-entropy of replayed images; 0: DER."""
    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""
    replay: Replay = Replay(buffer_size=500)
    """The buffer; each step draws from it twice."""

    def __check_init__(self):
        if not self.replay.buffer_size:
            raise UserError("dark experience replay needs a buffer of at least 1 image, got 0.")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; expected a finite number of at least 0.")

    def memory(self, model: Classifier, stream: TaskStream) -> Buffer:
        """The empty buffer, with room for logits."""
        return Buffer.empty(self.replay, stream, logits=True)

    def recall(
        self, memory: Buffer | None, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> Batch:
        """The batch and two samples of the buffer."""
        assert memory is not None, "the method has a buffer"
        size, keys = self.replay.replay_batch, jr.split(key)
        return extend(batch, *(memory.sample(size, key=key) for key in keys))

    def loss(
        self,
        model: Classifier,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """The three terms, each over its part of the batch."""
        if batch.other is not None:
            raise UserError("stored logits are of unmixed images: turn mixup and CutMix off.")
        logits = self.predict(model, images, self.query_of(model, images, batch)).logits
        size = self.replay.replay_batch
        parts = (slice(None, -2 * size), slice(-2 * size, -size), slice(-size, None))
        new, labelled = (self._cross_entropy(logits, batch, task, parts[n]) for n in (0, 2))
        return new + self.alpha * distance(logits, batch, parts[1]) + self.beta * labelled, logits

    def _cross_entropy(self, logits: Scores, batch: Batch, task: Task, part: slice):
        rows = Batch(batch.image[part], batch.label[part], batch.weight[part])
        return masked_cross_entropy(logits[part], rows, self.competing(task))


def distance(logits: Scores, batch: Batch, part: slice) -> Float[Array, ""]:
    """Mean square of what the logits of these rows differ from the stored ones."""
    assert batch.remembered is not None, "the buffer keeps logits"
    squares = jnp.square(logits[part] - batch.remembered[part]).mean(1)
    return weighted_mean(squares, batch.weight[part])
