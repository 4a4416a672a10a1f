"""RanPAC (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

In its first phase the backbone adapts to the first task: adapters (AdaptFormer), scales and shifts
(SSF) or prompts (VPT-deep) are trained with a head of cosines, by cross-entropy, and are frozen
afterwards. By default this phase is left out (the paper's "no Phase 1"). The authors train for 20
epochs in batches of 48, with SGD, momentum 0.9, weight decay 5e-4 and a cosine schedule from 0.01
(`RanPAC.py` and `args/` of RanPAC/RanPAC at 012927f). No other task takes a step.

In the second phase, features f pass a frozen random projection and a ReLU, h = relu(f W) with
W ~ N(0, 1), and the classifier is ridge regression on one-hot labels (section 4):

    G = sum h h^T,   C = sum h y^T,   scores = h (G + lambda I)^-1 C

G and C are streamed, in one pass over each task and without a gradient. Where no ridge is given,
lambda is the power of ten from 1e-8 to 1e8 that, fitted to 80 % of the task's images, has the
smallest squared error on the others. The authors' code takes the first 80 % of a shuffled task;
here a random draw decides for each image, and the errors follow from sums over the two parts, so
that no feature is kept. If rounding leaves no solution for all tasks at that lambda, the next power
of ten at which there is one is used instead. Images are prepared as for evaluation, as in the
authors' code. A width of 0 leaves the projection out: h = f, as with M = 0 there.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
    no_query,
    only,
)
from promptax.methods.components.first_session import CosineHead, FirstSession
from promptax.methods.components.losses import cross_entropy
from promptax.methods.components.moments import Moments
from promptax.methods.components.ridge import best_ridge, solve_or_strengthen
from promptax.nn.backbone import AbstractBackbone

FITTED_SHARE = 0.8
"""Share of a task's images that a ridge is fitted to; it is judged on the others."""


class ProjectedBackbone(eqx.Module):
    """A backbone with a frozen random projection and a ReLU on top of it."""

    backbone: AbstractBackbone
    """Frozen, but for what the first phase trains."""
    projection: Float32[Array, "dim width"] | None
    """None: features are used as they are."""
    cosine_head: CosineHead | None
    """The head of the first phase; None without it."""

    def features(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch dim"]:
        """The features of the backbone."""
        return self.backbone(images).astype(jnp.float32)

    def project(self, features: Float[Array, "batch dim"]) -> Float32[Array, "batch width"]:
        """Project features of the backbone."""
        if self.projection is None:
            return features
        return jax.nn.relu(features @ self.projection)


class RidgeState(eqx.Module):
    """The state of RanPAC: sums over images, and the head that was solved from them."""

    earlier: Moments
    """Of all earlier tasks."""
    fitted: Moments
    """Of the part of the current task that ridges are fitted to."""
    held_out: Moments
    """Of the part of the current task that ridges are judged on."""
    kernel: Float32[Array, "width classes"]
    """The solution after the last task."""


class RanPAC(AbstractMethod):
    """RanPAC: ridge regression on a random projection of features, in one pass over each task."""

    width: int = 10_000
    """Width of the random projection (M); 0: no projection."""
    ridge: float | None = None
    """Strength of the ridge (lambda); None: chosen on each task."""
    first_session: FirstSession = FirstSession()
    """The first phase: parameters trained on the first task, before features are collected."""

    def __check_init__(self):
        if self.width < 0:
            raise UserError(f"width of the projection is {self.width}; expected at least 0.")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise UserError(f"ridge is {self.ridge}; expected a finite number above 0.")

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[ProjectedBackbone, RidgeState]:
        """Draw the projection from the standard normal distribution; all sums are zero."""
        dim = backbone.dim
        projection = jr.normal(key, (dim, self.width)) if self.width else None
        cosine_head = None
        if self.first_session.on:
            tuning_key, head_key = jr.split(jr.fold_in(key, 1))
            backbone = self.first_session.tuned(backbone, key=tuning_key)
            cosine_head = CosineHead(dim, stream.num_classes, key=head_key)
        model = ProjectedBackbone(backbone, projection, cosine_head)
        zero = Moments.zero(self.width or dim, stream.num_classes)
        return model, RidgeState(zero, zero, zero, kernel=zero.cross)

    @property
    def trainable(self) -> Any:
        """The parameters of the first phase; without that phase, there is no such hook."""
        return _first_phase_parameters if self.first_session.on else None

    @property
    def loss(self) -> Any:
        """The loss of the first phase; no hook without that phase."""
        return _first_phase_loss if self.first_session.on else None

    def trains(self, task_number: int) -> bool:
        """Only the first task is learned by steps."""
        return task_number == 0

    def query(self, model: ProjectedBackbone, images: ModelImages) -> Query:
        """The features before the projection, which is far wider, if no training changes them."""
        return no_query(images) if self.first_session.on else model.features(images)

    def predict(
        self, model: ProjectedBackbone, state: RidgeState, images: ModelImages, query: Query
    ) -> Prediction:
        """Apply the solved head to the projected feature."""
        features = model.features(images) if self.first_session.on else query
        return Prediction(model.project(features) @ state.kernel)

    def observe(
        self, model: ProjectedBackbone, state: RidgeState, batch: Batch, task: Task, *, key: Key
    ) -> tuple[ProjectedBackbone, RidgeState]:
        """Add each image of a batch to one of the two parts of the task."""
        features = model.features(batch.images) if self.first_session.on else batch.query
        inputs = model.project(features)
        targets = jax.nn.one_hot(batch.label, state.kernel.shape[1])
        is_fitted = jr.bernoulli(key, FITTED_SHARE, batch.weight.shape)
        fitted = Moments.of(inputs, targets, batch.weight * is_fitted)
        held_out = Moments.of(inputs, targets, batch.weight * ~is_fitted)
        return model, RidgeState(
            earlier=state.earlier,
            fitted=state.fitted + fitted,
            held_out=state.held_out + held_out,
            kernel=state.kernel,
        )

    def end_task(
        self, model: ProjectedBackbone, state: RidgeState, task: Task, *, key: Key
    ) -> tuple[ProjectedBackbone, RidgeState]:
        """Choose the ridge on the task, and solve for all tasks so far."""
        total = state.earlier + state.fitted + state.held_out
        if self.ridge is None:
            kernel = solve_or_strengthen(total, best_ridge(state.fitted, state.held_out))
        else:
            kernel = total.solve(self.ridge)
        zero = jax.tree.map(jnp.zeros_like, total)
        return model, RidgeState(total, zero, zero, kernel)


def _first_phase_parameters(model: ProjectedBackbone, task: Task) -> PyTree:
    """The parameters added to the backbone, and the head of cosines."""
    return only(model, lambda model: (model.backbone.tuning, model.cosine_head))


def _first_phase_loss(
    model: ProjectedBackbone, state: RidgeState, batch: Batch, task: Task, *, key: Key
) -> StepLoss:
    """Cross-entropy among the competing classes."""
    assert model.cosine_head is not None, "made by `init`"
    logits = model.cosine_head(model.features(batch.images))
    return cross_entropy(logits, batch, task.competing), (logits, state)
