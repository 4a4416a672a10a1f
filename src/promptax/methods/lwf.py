"""Learning without forgetting (Li and Hoiem, TPAMI 2018, arXiv 1606.09282).

On the images of a new task, the outputs for old classes are kept close to p', those of the model as
it was before the task (section 3, with temperature T):

    loss = CE(h(x), y) + lambda * -sum over old classes c of  p'_c log p_c,    p = softmax(h(x) / T)

The paper softens probabilities as p^(1/T) and divides by their sum, which is the same. It has a
head for each old task; here, as in most later code, the old classes share one softmax. Classes of
the task compete in the first term only among themselves, and there are no epochs that warm up the
new head alone. There is no T^2 in front of the second term, as Hinton et al. (2015) advise and some
code has it.

The teacher sees the very image that the student sees, augmented in the same way, as in PyCIL
(`models/lwf.py` at 44cda2e). Mammoth (`models/lwf.py` at e75a491) computes the teacher's logits
once before each task, on images that are not augmented, after training the new head alone, and its
cross-entropy is over all classes seen so far (`--class-mask seen` here). The distillation is the
same in all three, so that weights carry over as they are: the default is the paper's 1, Mammoth's
is 0.5, and PyCIL's 3.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Key, Logits, Scalar, StepLoss, first_task, is_trained
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.losses import cross_entropy, weighted_mean
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class Teacher(eqx.Module):
    """The state of LwF: the model as the last task left it."""

    params: PyTree
    """Its trained leaves; the frozen ones are the model's."""
    seen: Bool[Array, " classes"]
    """The classes that it knows; none before the first task."""


class LwF(AbstractClassifier):
    """Learning without forgetting: the model before a task teaches the model that learns it."""

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

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, Teacher]:
        """Put a zero head on the backbone, and start with a teacher that knows no class."""
        model = Classifier(backbone, stream.num_classes)
        unknown = jnp.zeros(stream.num_classes, bool)
        return model, Teacher(self._params(model, first_task(stream)), unknown)

    def reached_classes(self, task: Task) -> Bool[Array, " classes"]:
        """All classes seen so far: distillation reaches those of earlier tasks."""
        return task.seen

    def loss(
        self, model: Classifier, state: Teacher, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy and the distillation term."""
        logits = self.predict(model, state, batch.images, batch.query).logits
        teacher = eqx.combine(state.params, jax.lax.stop_gradient(model))
        target = self.predict(teacher, state, batch.images, batch.query).logits
        distance = distillation(logits, target, state.seen, self.temperature)
        loss = cross_entropy(logits, batch, task.competing)
        return loss + self.coefficient * weighted_mean(distance, batch.weight), (logits, state)

    def end_task(
        self, model: Classifier, state: Teacher, task: Task, *, key: Key
    ) -> tuple[Classifier, Teacher]:
        """Make the model its own teacher."""
        return model, Teacher(self._params(model, task), task.seen)

    def _params(self, model: Classifier, task: Task) -> PyTree:
        return eqx.filter(model, is_trained(self.trainable(model, task)))


def distillation(
    logits: Logits, target: Logits, classes: Bool[Array, " classes"], temperature: Scalar
) -> Float[Array, " batch"]:
    """Cross-entropy of two softened softmaxes over some classes; 0 if there are none.

    Args:
        logits: Of the model that learns.
        target: Of the teacher.
        classes: The classes that the teacher knows.
        temperature: Divides both logits (T).
    """
    soften = lambda logits: jnp.where(classes, logits / temperature, -1e30)
    entropy = -(jax.nn.softmax(soften(target)) * jax.nn.log_softmax(soften(logits)))
    return jnp.where(classes, entropy, 0).sum(1)
