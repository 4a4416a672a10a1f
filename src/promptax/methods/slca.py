"""SLCA, Slow Learner with Classifier Alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

The whole model is fine-tuned task after task, the backbone at a small fraction of the head's
learning rate (Slow Learner). After each task the head is trained anew on features drawn from a
Gaussian for each class (Classifier Alignment), with logits h divided by their norm:

    loss = CE(h / (tau |h|), y)

As in the authors' code (GengDavid/SLCA, 169d4e6, models/slca.py), |h| is the mean of the norms over
the classes of each task; means of earlier classes are shrunk towards zero, by up to a tenth; 1e-4
is added to variances; the first task is not aligned; the next task goes on from the head as it was
before; and columns of the head that earlier tasks trained are frozen (convs/linears.py). Unlike in
their code, the head is zero at first, where theirs is drawn from a normal distribution, and
statistics are streamed in float32, where theirs are of all features at once, in float64. A class
that several domains show has one Gaussian, and one norm.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from promptax.core.settings import LARGEST, SMALLEST, require
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Key, Logits, Scalar, StepLoss
from promptax.methods.components.alignment import Alignment, masked_cross_entropy
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.gaussians import Draws, Factors, Gaussians
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier
from promptax.nn.vit import Linear

NO_TASK = -1
"""The owner of a class that no task has shown yet."""


class ClassStatistics(eqx.Module):
    """The state of SLCA: statistics of features, and the head before alignment."""

    gaussians: Gaussians
    """Of the features of each class seen so far."""
    head: Linear
    """The head as training left it, before it was aligned: the next task goes on from there."""
    owner: Int32[Array, " classes"]
    """The task that first showed each class."""


class SLCA(AbstractClassifier):
    """SLCA: slow fine-tuning of everything, and a head aligned on Gaussian class statistics."""

    backbone_rate: float = 0.01
    """Learning rate of the backbone, as a fraction of the head's."""
    temperature: float | None = 0.1
    """Temperature of the normalised logits (tau); None: logits as they are."""
    shrink: float = 0.1
    """Largest share by which the means of the first task's classes are shrunk towards zero."""
    train_backbone: bool = True
    """Train the backbone too."""
    alignment: Alignment = Alignment()
    """How the head is aligned."""

    def __check_init__(self):
        tau = self.temperature
        if tau is not None:
            require(SMALLEST <= tau <= LARGEST, "temperature", tau, "a number above 0")
        require(0 <= self.shrink < 1, "shrink", self.shrink, "at least 0 and below 1")

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, ClassStatistics]:
        """Put a zero head on the backbone, and start with empty statistics."""
        model = Classifier(backbone, stream.num_classes)
        gaussians = Gaussians.empty(stream.num_classes, backbone.dim)
        owner = jnp.full(stream.num_classes, NO_TASK, jnp.int32)
        return model, ClassStatistics(gaussians, model.head, owner)

    def loss(
        self, model: Classifier, state: ClassStatistics, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy among the task's classes."""
        logits = self.predict(model, state, batch.images, batch.query).logits
        return cross_entropy(logits, batch, task.competing), (logits, state)

    def begin_task(
        self, model: Classifier, state: ClassStatistics, task: Task, *, key: Key
    ) -> tuple[Classifier, ClassStatistics]:
        """Go back to the head before it was aligned."""
        is_new = (state.owner == NO_TASK) & task.classes
        owner = jnp.where(is_new, task.index, state.owner)
        model = eqx.tree_at(lambda model: model.head, model, state.head)
        return model, ClassStatistics(state.gaussians, state.head, owner)

    def observe(
        self, model: Classifier, state: ClassStatistics, batch: Batch, task: Task, *, key: Key
    ) -> tuple[Classifier, ClassStatistics]:
        """Add the features of a batch to the statistics."""
        features = model.features(batch.images)
        gaussians = state.gaussians.add(features, batch.label, batch.weight)
        return model, ClassStatistics(gaussians, state.head, state.owner)

    def end_task(
        self, model: Classifier, state: ClassStatistics, task: Task, *, key: Key
    ) -> tuple[Classifier, ClassStatistics]:
        """Keep the head, and align it from the second task on."""
        owner = state.owner

        def loss(logits: Logits, draws: Draws) -> Float[Array, ""]:
            if self.temperature is not None:
                logits = logits / (self.temperature * logit_norm(logits, owner))
            return masked_cross_entropy(logits, draws, owner != NO_TASK)

        def aligned() -> Linear:
            factors = shrunk(state.gaussians.factors(), owner, task, self.shrink)
            learned = factors.seen.sum()
            return self.alignment(model.head, factors, loss, task, learned=learned, key=key)

        head = jax.lax.cond(task.index > 0, aligned, lambda: model.head)
        state = ClassStatistics(state.gaussians, model.head, owner)
        return eqx.tree_at(lambda model: model.head, model, head), state


def logit_norm(logits: Logits, owner: Int32[Array, " classes"]) -> Float32[Array, "batch 1"]:
    """Mean over tasks of the norm of the logits of the classes that each task was first to show."""
    member = jax.nn.one_hot(owner, len(owner))
    squares = jnp.square(logits) @ member
    # The authors add 1e-7 to the norm; a floor under its square has a gradient at 0, too.
    norms = jnp.sqrt(jnp.maximum(squares, 1e-14))
    return norms.mean(1, keepdims=True, where=member.any(0))


def shrunk(
    factors: Factors, owner: Int32[Array, " classes"], task: Task, shrink: Scalar
) -> Factors:
    """Shrink the means of earlier classes towards zero, the older ones more.

    After task T, means of classes of task t are multiplied by `1 - shrink (1 - (t + 1) / (T + 1))`.

    Args:
        factors: The class statistics.
        owner: The task of each class.
        task: The current task.
        shrink: The largest share that is taken from a mean.
    """
    age = 1 - (owner + 1) / (task.index + 1)
    return eqx.tree_at(lambda f: f.mean, factors, factors.mean * (1 - shrink * age)[:, None])
