"""SLDC, Sequential Learning with Drift Compensation (Rao et al., AAAI 2026, arXiv 2511.09926).

A LoRA is trained task after task; features of earlier classes drift with it. Where f- and f are the
features of the task's images before and after it, normalised to length 1 and in rows, the drift is
taken for linear, and the Gaussians of earlier classes are moved along:

    A = (F-^T F- + gamma I)^-1 F-^T F,    A <- (1 - w) A + w I,    w = exp(-n / (alpha d))
    mean <- mean A,    covariance <- A^T covariance A

for n images and d dimensions. Then the head is trained anew on features drawn from all Gaussians.
This is alpha_1-SLDC, and with distillation, the default, beta_1-SLDC:

    loss = SCE(h(f), y) + distill |f - f-|^2 / d + norm (|f| - |f-|)^2

where SCE is the mean of the cross-entropies of y from h and of h from y (log 0 is log 1e-4, Wang et
al., 2019). The paper's alpha_2 and beta_2 put a small network in the place of A.

As in the authors' code, the loss is SCE, LoRA is on queries, keys, values and the MLP, and the next
task goes on from the head as it was before. Unlike there, one LoRA serves all tasks, where theirs
is folded into the weights after each; features are drawn anew in each epoch, in batches of one size
for any number of classes; the final LayerNorm keeps its scale and bias; and nothing is added to a
covariance that is moved (they add 1e-2, the paper does not). A class that the task shows again is
not moved.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import LARGEST, Alignment
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractFinetuned, ModelImages, Scores, only, weighted_mean
from promptax.methods.components.alignment import Learned, align
from promptax.methods.components.gaussians import Draws
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier
from promptax.nn.lora import AdaptedViT, LoRA
from promptax.nn.prompt import l2_normalize


class Memory(eqx.Module):
    """Class statistics, and how features drift in the current task."""

    learned: Learned
    before: LoRA
    """As it entered the task."""
    gram: Float32[Array, "dim dim"]
    """Products of features before the task, with themselves."""
    cross: Float32[Array, "dim dim"]
    """And with those after it."""


class SLDC(AbstractFinetuned):
    """SLDC: a LoRA task after task, and class statistics that follow the drift of features."""

    rank: int = 4
    """Rank of the LoRA."""
    backbone_rate: float = 0.1
    """Learning rate of the LoRA, as a fraction of the head's."""
    distill: float = 1.0
    """Weight of the distance to the features before the task; 0 with `norm` 0: alpha_1-SLDC."""
    norm: float = 0.1
    """Weight of the difference from their norm."""
    ridge: float = 1e-4
    """Strength of the ridge of the drift (gamma)."""
    smoothing: float = 1.0
    """How many images, in multiples of the width, it takes to believe in the drift (alpha)."""
    alignment: Alignment = Alignment(6, 1024, 256, 5e-4, 0.1)
    """How the head is aligned."""
    train_backbone: bool = eqx.field(default=True, init=False)

    observes: ClassVar[bool] = True

    def __check_init__(self):
        for name in ("distill", "norm"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 to {LARGEST:g}.")
        for name in ("ridge", "smoothing"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number above 0.")

    def init(
        self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray
    ) -> Classifier:
        """A zero head on the ViT with a LoRA that changes nothing yet."""
        return Classifier(AdaptedViT.init(backbone, self.rank, key=key), num_classes)

    def trainable(self, model: Classifier) -> PyTree:
        """The LoRA and the head."""
        return only(model, lambda model: (model.backbone.lora, model.head))

    def memory(self, model: Classifier, stream: TaskStream) -> Memory:
        """Nothing seen yet."""
        learned = Learned.nothing(model.head, stream.num_classes)
        zero = jnp.zeros((model.backbone.dim,) * 2)
        return Memory(learned, _adapted(model).lora, zero, zero)

    def begin_task(
        self, model: Classifier, memory: Memory, task: Task
    ) -> tuple[Classifier, Memory]:
        """Go back to the head before it was aligned."""
        return eqx.tree_at(lambda model: model.head, model, memory.learned.head), memory

    def objective(
        self,
        model: Classifier,
        memory: Memory,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Scores]:
        """The three terms, from one pass; the first task has no features before it."""
        feature = model.features(images)
        logits = model.head(feature)
        target = soft_labels(batch, logits.shape[1])
        entropy = symmetric_cross_entropy(logits, target, self.competing(task))
        loss = weighted_mean(entropy, batch.weight)
        if self.distill == self.norm == 0:
            return loss, logits
        same = jax.lax.stop_gradient(feature)
        earlier = lambda: jax.lax.stop_gradient(_before(model, memory).features(images))
        before = jax.lax.cond(task.index > 0, earlier, lambda: same)
        return loss + weighted_mean(self._drift(feature, before), batch.weight), logits

    def _drift(
        self, feature: Float32[Array, "batch dim"], before: Float32[Array, "batch dim"]
    ) -> Float32[Array, " batch"]:
        length = lambda x: jnp.linalg.norm(x, axis=1)
        apart = jnp.square(feature - before).mean(1)
        return self.distill * apart + self.norm * jnp.square(length(feature) - length(before))

    def observe(
        self,
        model: Classifier,
        memory: Memory,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Add the features of a batch, after the task and before it."""
        feature, before = model.features(images), _before(model, memory).features(images)
        learned = memory.learned.observed(feature, batch.label, batch.weight, key=key)
        x, y = (l2_normalize(rows) * batch.weight[:, None] for rows in (before, feature))
        return Memory(learned, memory.before, memory.gram + x.T @ x, memory.cross + x.T @ y)

    def end_task(self, model: Classifier, memory: Memory, task: Task) -> tuple[Classifier, Memory]:
        """Move the Gaussians of earlier classes, and align the head on all."""
        matrix = drift(memory.gram, memory.cross, task.examples, self.ridge, self.smoothing)
        gaussians = memory.learned.gaussians.moved(matrix, task.seen & ~task.classes)
        learned = Learned(gaussians, model.head, memory.learned.seed)

        def loss(logits: Scores, draws: Draws) -> Float[Array, ""]:
            target = jax.nn.one_hot(draws.label, logits.shape[1])
            entropy = symmetric_cross_entropy(logits, target, task.seen)
            return weighted_mean(entropy, draws.weight)

        adam = optax.chain(optax.add_decayed_weights(1e-4), optax.scale_by_adam())
        factors, key = gaussians.factors(1e-3), jr.key(learned.seed)
        head = align(model.head, factors, self.alignment, adam, loss, key=key)
        zero = jnp.zeros_like(memory.gram)
        memory = Memory(learned, _adapted(model).lora, zero, zero)
        return eqx.tree_at(lambda model: model.head, model, head), memory


def drift(
    gram: Float32[Array, "dim dim"],
    cross: Float32[Array, "dim dim"],
    examples: Array,
    ridge: float,
    smoothing: float,
) -> Float32[Array, "dim dim"]:
    """The matrix A that takes features before a task to those after it."""
    identity = jnp.eye(len(gram))
    weight = jnp.exp(-examples / (smoothing * len(gram)))
    return (1 - weight) * jnp.linalg.solve(gram + ridge * identity, cross) + weight * identity


def symmetric_cross_entropy(
    logits: Scores, target: Float32[Array, "batch classes"], classes: Bool[Array, " classes"]
) -> Float32[Array, " batch"]:
    """The mean of both cross-entropies, over some classes."""
    log = jax.nn.log_softmax(jnp.where(classes, logits, -1e30))
    reverse = jnp.exp(log) * jnp.log(jnp.clip(target, 1e-4, 1))
    return -0.5 * (target * log + reverse).sum(1)


def soft_labels(batch: Batch, classes: int) -> Float32[Array, "batch classes"]:
    """One-hot labels, of mixed examples by their shares."""
    label = jax.nn.one_hot(batch.label, classes)
    if batch.other is None or batch.share is None:
        return label
    share = batch.share[:, None]
    return share * label + (1 - share) * jax.nn.one_hot(batch.other, classes)


def _adapted(model: Classifier) -> AdaptedViT:
    assert isinstance(model.backbone, AdaptedViT), "made by `init`"
    return model.backbone


def _before(model: Classifier, memory: Memory) -> Classifier:
    """The model with the LoRA as it entered the task."""
    return eqx.tree_at(lambda model: model.backbone.lora, model, memory.before)
