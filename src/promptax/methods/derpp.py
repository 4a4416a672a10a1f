"""Dark experience replay, DER and DER++ (Buzzega et al., NeurIPS 2020, arXiv 2004.07211).

The buffer keeps with an image the logits z that the model gave it when it was stored. Each step
draws from it twice (section 3; with beta = 0 it is DER):

    loss = CE(h(x), y) + alpha * |h(x') - z'|^2 + beta * CE(h(x''), y'')

As in the authors' code (Mammoth, `models/derpp.py` at e75a491), the square is a mean over images
and all classes, where the paper writes a norm; each term is a mean of its own; and an image is
offered to the buffer after every step that used it, in every epoch, so that most stored logits are
those of a model that has learned the task. (With `buffer_epochs` "first" they are those of a model
that has hardly been trained, and the distance ties the model to them.) Unlike in their code,
classes that no task has shown yet do not compete.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.core.types import Batch, Task
from promptax.methods.base import Key, Logits, StepLoss
from promptax.methods.components.losses import cross_entropy, weighted_mean
from promptax.methods.finetune import Finetune
from promptax.methods.rehearsal import AbstractRehearsal


class DERPP(AbstractRehearsal):
    """Dark experience replay: earlier images keep their logits (DER++; DER with beta 0)."""

    method: Finetune = Finetune()
    """How backbone and head are trained."""
    alpha: float = 0.1
    """Weight of the distance to the stored logits."""
    beta: float = 0.5
    """Weight of the cross-entropy of replayed images; 0: DER."""
    replay: Replay = Replay(buffer_size=500)
    """The buffer; each step draws from it twice."""

    samples: ClassVar[int] = 2
    stores_logits: ClassVar[bool] = True

    def __check_init__(self):
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; expected a finite number of at least 0.")

    def objective(self, model: Any, state: Any, batch: Batch, task: Task, *, key: Key) -> StepLoss:
        """The three terms, each over its own part of the batch."""
        if batch.mixed_label is not None:
            raise UserError("stored logits are of unmixed images: turn mixup and CutMix off.")
        logits = self.method.predict(model, state, batch.images, batch.query).logits
        size = self.replay.replay_batch
        stop = len(batch.label) - 2 * size
        own = slice(stop)
        matched = slice(stop, stop + size)
        labelled = slice(stop + size, None)
        new_loss = cross_entropy(logits[own], _rows(batch, own), task.competing)
        distance = logit_distance(logits[matched], _rows(batch, matched))
        replay_loss = cross_entropy(logits[labelled], _rows(batch, labelled), task.competing)
        loss = new_loss + self.alpha * distance + self.beta * replay_loss
        return loss, (logits, state)


def logit_distance(logits: Logits, batch: Batch) -> Float[Array, ""]:
    """Mean square of the difference between logits and the stored ones of the same images."""
    assert batch.stored_logits is not None, "the buffer keeps logits"
    return weighted_mean(jnp.square(logits - batch.stored_logits).mean(1), batch.weight)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some of the examples of a batch."""
    return jax.tree.map(lambda leaf: leaf[rows], replace(batch, mixed_label=None, share=None))
