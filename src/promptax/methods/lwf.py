"""Learning without forgetting (Li and Hoiem, TPAMI 2018, arXiv 1606.09282).

On the images of a new task, the outputs for old classes are held near to those p' of the model as
it was before the task (section 3, with temperature T):

    loss = CE(h(x), y) + lambda * -sum over old classes c of  p'_c log p_c,    p = softmax(h(x) / T)

The paper softens probabilities as p^(1/T) and divides by their sum, which is the same. It has a
head for each old task; here, as in most later code, the old classes share one softmax. Classes of
the task compete in the first term only among themselves, and there are no epochs that warm up the
new head alone. There is no T^2 in front of the second term, as Hinton et al. (2015) advise and some
code has it.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractFinetuned, ModelImages, Scores, weighted_mean
from promptax.nn.classifier import Classifier


class Teacher(eqx.Module):
    """The model as the last task left it."""

    params: PyTree
    """Its trainable leaves."""
    seen: Bool[Array, " classes"]
    """The classes that it knows; none before the first task."""


class LwF(AbstractFinetuned):
    """Learning without forgetting: the model before a task teaches the one that learns it."""

    coefficient: float = 1.0
    """Weight of the distillation (lambda)."""
    temperature: float = 2.0
    """Temperature of the distillation (T)."""
    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""

    def __check_init__(self):
        if not 0 <= self.coefficient < math.inf:
            raise UserError(
                f"coefficient is {self.coefficient}; expected a finite number of at least 0."
            )
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; expected a finite number above 0.")

    def memory(self, model: Classifier, stream: TaskStream) -> Teacher:
        """A teacher that knows nothing yet."""
        params = eqx.filter(model, self.trainable(model))
        return Teacher(params, jnp.zeros(stream.num_classes, bool))

    def penalty(
        self,
        model: Classifier,
        memory: Teacher,
        images: ModelImages,
        batch: Batch,
        task: Task,
        logits: Scores,
    ) -> Float[Array, ""] | float:
        """The distillation term."""
        teacher = eqx.combine(memory.params, jax.lax.stop_gradient(model))
        wanted = self.predict(teacher, images, self.query_of(teacher, images, batch)).logits
        entropy = distillation(logits, wanted, memory.seen, self.temperature)
        return self.coefficient * weighted_mean(entropy, batch.weight)

    def end_task(self, model: Classifier, memory: Teacher, task: Task) -> tuple[PyTree, Any]:
        """Make the model its own teacher."""
        return model, Teacher(eqx.filter(model, self.trainable(model)), task.seen)


def distillation(
    logits: Scores, wanted: Scores, classes: Bool[Array, " classes"], temperature: float
) -> Float[Array, " batch"]:
    """Cross-entropy of two softened softmaxes over some classes; 0 where there are none."""
    soften = lambda logits: jnp.where(classes, logits / temperature, -1e30)
    entropy = -(jax.nn.softmax(soften(wanted)) * jax.nn.log_softmax(soften(logits)))
    return jnp.where(classes, entropy, 0).sum(1)
