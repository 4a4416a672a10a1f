"""SLDC, Sequential Learning with Drift Compensation (Rao et al., AAAI 2026, arXiv 2511.09926).

A LoRA is trained task after task; features of earlier classes drift with it. Where f- and f are the
features of the task's images before and after it, normalised to length 1 and in rows, the drift is
taken to be linear, and the Gaussians of earlier classes are moved along:

    A = (F-^T F- + gamma I)^-1 F-^T F,    A <- (1 - w) A + w I,    w = exp(-n / (alpha d))
    mean <- mean A,    covariance <- A^T covariance A

for n images and d dimensions. Then the head is trained anew on features drawn from all Gaussians.
This is alpha_1-SLDC, and with distillation, the default, beta_1-SLDC:

    loss = SCE(h(f), y) + distill |f - f-|^2 / d + norm (|f| - |f-|)^2

where SCE is the mean of the cross-entropies of y from h and of h from y (log 0 is log 1e-4, Wang et
al., 2019). The paper's alpha_2 and beta_2 put a small network in the place of A.

As in the authors' code (raoxuan98-hash/sldc_rebuttal, fe0f492, models/sldc.py and sldc_modules.py),
the loss is SCE, one LoRA on queries, keys, values and the MLP serves all tasks, the head is aligned
from the first task on, and the next task goes on from the head as it was before. Unlike in their
code:

- The drift is fitted to images of the task alone. Their code can add 1024 images of ImageNet.
- Statistics and drift are of images as they are; theirs are of augmented ones.
- The defaults leave out what `clamped` and `moved_ridge` add.
- The LoRA starts as in the paper on LoRA, with random rows; theirs starts with the leading right
  singular vectors of each kernel, and its product is scaled by 0.8.
- The head has a bias and starts at zero; theirs has none, but a factor for each class.
- Alignment draws features anew in each epoch, in batches of one size. Theirs draws them once, in
  batches that grow with the number of classes.
- The Gaussian of a class that the task shows again is not moved; in their streams, no class comes
  again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from promptax.core.settings import LARGEST, SMALLEST, require
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    Logits,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
    only,
    union,
)
from promptax.methods.components.alignment import Alignment
from promptax.methods.components.drift import drift_matrix
from promptax.methods.components.gaussians import Draws, Gaussians
from promptax.methods.components.losses import (
    soft_labels,
    symmetric_cross_entropy,
    weighted_mean,
)
from promptax.methods.components.moments import Moments
from promptax.methods.components.task_rows import own_columns
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier
from promptax.nn.lora import AdaptedViT, LoRA
from promptax.nn.prompt import l2_normalize
from promptax.nn.vit import Linear


class DriftStatistics(eqx.Module):
    """The state of SLDC: class statistics, and how features drift during the current task."""

    gaussians: Gaussians
    """Of the features of each class seen so far."""
    head: Linear
    """The head as training left it, before it was aligned: the next task goes on from there."""
    lora: LoRA
    """The LoRA as it entered the task."""
    drift: Moments
    """Products of features before the task, with themselves and with those after it."""


class SLDC(AbstractMethod):
    """SLDC: a LoRA trained task after task, with class statistics that follow feature drift."""

    rank: int = 4
    """Rank of the LoRA."""
    backbone_rate: float = 0.1
    """Learning rate of the LoRA, as a fraction of the head's."""
    distill: float = 1.0
    """Weight of the distance to the features before the task; 0 with `norm` 0: alpha_1-SLDC."""
    norm: float = 0.1
    """Weight of the difference from the norm of the features before the task."""
    clamped: bool = False
    """Clamp probabilities at 1e-7 and targets at 1e-4 in both terms of the symmetric cross-entropy,
    as the authors' code does. An example that is far from right then has no gradient."""
    ridge: float = 1e-4
    """Ridge of the least-squares fit of the drift (gamma)."""
    smoothing: float = 1.0
    """How many images, as a multiple of the feature dimension, outweigh the assumption that
    features do not drift (alpha)."""
    moved_ridge: float = 0.0
    """Added to the variances of each class that is moved: 0.01 in the authors' code, nothing in the
    paper."""
    alignment: Alignment = Alignment(
        align_epochs=6,
        align_samples=1024,
        align_batch=256,
        align_rate=5e-4,
        align_floor=0.1,
        align_optimizer="adam",
        align_decay=1e-4,
    )
    """How the head is aligned."""

    def __check_init__(self):
        rate = self.backbone_rate
        require(0 <= rate <= 1, "backbone rate", rate, "between 0 and 1")
        for name in ("distill", "norm", "moved_ridge"):
            value = getattr(self, name)
            require(0 <= value <= LARGEST, name.replace("_", " "), value, f"0 to {LARGEST:g}")
        for name in ("ridge", "smoothing"):
            value = getattr(self, name)
            require(SMALLEST <= value <= LARGEST, name, value, "a number above 0")

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, DriftStatistics]:
        """Add a LoRA that changes nothing yet and a zero head; statistics are empty."""
        adapted = AdaptedViT.init(backbone, self.rank, key=key)
        model = Classifier(adapted, stream.num_classes)
        gaussians = Gaussians.empty(stream.num_classes, backbone.dim)
        drift = Moments.zero(backbone.dim, backbone.dim)
        return model, DriftStatistics(gaussians, model.head, adapted.lora, drift)

    def trainable(self, model: Classifier, task: Task) -> PyTree:
        """The head, and the LoRA at its own rate."""
        lora = only(model, lambda model: model.backbone.lora, self.backbone_rate)
        return union(only(model, lambda model: model.head, own_columns(task)), lora)

    def predict(
        self, model: Classifier, state: DriftStatistics, images: ModelImages, query: Query
    ) -> Prediction:
        """Apply the head to the features of the adapted ViT."""
        return Prediction(model(images))

    def begin_task(
        self, model: Classifier, state: DriftStatistics, task: Task, *, key: Key
    ) -> tuple[Classifier, DriftStatistics]:
        """Go back to the head before it was aligned."""
        return eqx.tree_at(lambda model: model.head, model, state.head), state

    def loss(
        self, model: Classifier, state: DriftStatistics, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Symmetric cross-entropy and both distances to the features before the task."""
        features = model.features(batch.images)
        logits = model.head(features)
        target = soft_labels(batch, logits.shape[1])
        entropy = symmetric_cross_entropy(logits, target, task.competing, clamped=self.clamped)
        # Without a distance, or in the first task, the second pass is not computed.
        compares = (task.index > 0) & ((self.distill > 0) | (self.norm > 0))
        same = jax.lax.stop_gradient(features)
        before = lambda: jax.lax.stop_gradient(_before(model, state).features(batch.images))
        earlier = jax.lax.cond(compares, before, lambda: same)
        distance = self._distance(features, earlier)
        return weighted_mean(entropy + distance, batch.weight), (logits, state)

    def _distance(
        self, features: Float32[Array, "batch dim"], earlier: Float32[Array, "batch dim"]
    ) -> Float32[Array, " batch"]:
        square = jnp.square(features - earlier).mean(1)
        lengths = jnp.linalg.norm(features, axis=1) - jnp.linalg.norm(earlier, axis=1)
        return self.distill * square + self.norm * jnp.square(lengths)

    def observe(
        self, model: Classifier, state: DriftStatistics, batch: Batch, task: Task, *, key: Key
    ) -> tuple[Classifier, DriftStatistics]:
        """Add the features of a batch, as they are after the task and as they were before it."""
        features = model.features(batch.images)
        earlier = _before(model, state).features(batch.images)
        gaussians = state.gaussians.add(features, batch.label, batch.weight)
        new = Moments.of(l2_normalize(earlier), l2_normalize(features), batch.weight)
        return model, DriftStatistics(gaussians, state.head, state.lora, state.drift + new)

    def end_task(
        self, model: Classifier, state: DriftStatistics, task: Task, *, key: Key
    ) -> tuple[Classifier, DriftStatistics]:
        """Move the Gaussians of earlier classes along the drift, and align the head on all."""
        matrix = drift_matrix(state.drift, task.examples, self.ridge, self.smoothing)
        gaussians = state.gaussians.moved(matrix, task.seen & ~task.classes, self.moved_ridge)

        def loss(logits: Logits, draws: Draws) -> Float[Array, ""]:
            target = jax.nn.one_hot(draws.label, logits.shape[1])
            entropy = symmetric_cross_entropy(logits, target, task.seen, clamped=self.clamped)
            return weighted_mean(entropy, draws.weight)

        factors = gaussians.factors(ridge=1e-3)
        learned = factors.seen.sum()
        head = self.alignment(model.head, factors, loss, task, learned=learned, key=key)
        drift = jax.tree.map(jnp.zeros_like, state.drift)
        state = DriftStatistics(gaussians, model.head, _adapted(model).lora, drift)
        return eqx.tree_at(lambda model: model.head, model, head), state


def _adapted(model: Classifier) -> AdaptedViT:
    assert isinstance(model.backbone, AdaptedViT), "made by `init`"
    return model.backbone


def _before(model: Classifier, state: DriftStatistics) -> Classifier:
    """The model with the LoRA as it entered the task."""
    return eqx.tree_at(lambda model: model.backbone.lora, model, state.lora)
