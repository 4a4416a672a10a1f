"""RanPAC (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

Features f pass a frozen random projection and a ReLU, h = relu(f W) with W ~ N(0, 1), and the
classifier is ridge regression on one-hot labels (section 4):

    G = sum h h^T,   C = sum h y^T,   scores = h (G + lambda I)^-1 C

G and C are streamed, in one pass over each task and without a gradient. Where no ridge is given,
lambda is the power of ten from 1e-8 to 1e8 that, fitted to 80 % of the task's images, has the
smallest squared error on the others. The authors' code takes the first 80 % of a shuffled
task; here a coin says it for each image, and the errors follow from sums over the two parts, so
that no feature is kept. Where rounding leaves no solution for all tasks at that lambda, it is the
next power of ten at which there is one. Images are prepared as for evaluation, as in the authors'
code.

The paper's first phase, in which adapters are trained on the first task, is left out: this is its
"no Phase 1", on the features as they are.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32

from promptax.core.errors import UserError
from promptax.core.precision import exact_einsum
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod, Key, ModelImages, Prediction, Query
from promptax.methods.components.moments import Moments
from promptax.nn.backbone import AbstractBackbone

RIDGES = tuple(10.0**power for power in range(-8, 9))
"""The ridges that are tried."""
FITTED_SHARE = 0.8
"""Share of a task's images that a ridge is fitted to; it is judged on the others."""


class ProjectedBackbone(eqx.Module):
    """A frozen backbone, and a frozen random projection with a ReLU on top of it."""

    backbone: AbstractBackbone
    projection: Float32[Array, "dim width"]

    def project(self, features: Float[Array, "batch dim"]) -> Float32[Array, "batch width"]:
        """Project features of the backbone."""
        return jax.nn.relu(features.astype(jnp.float32) @ self.projection)


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
    """RanPAC: ridge regression on a random projection of frozen features, in one pass."""

    width: int = 10_000
    """Width of the random projection (M)."""
    ridge: float | None = None
    """Strength of the ridge (lambda); None: chosen on each task."""

    def __check_init__(self):
        if self.width < 1:
            raise UserError(f"width of the projection is {self.width}; expected at least 1.")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise UserError(f"ridge is {self.ridge}; expected a finite number above 0.")

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[ProjectedBackbone, RidgeState]:
        """Draw the projection from the standard normal distribution; all sums are zero."""
        model = ProjectedBackbone(backbone, jr.normal(key, (backbone.dim, self.width)))
        zero = Moments.zero(self.width, stream.num_classes)
        return model, RidgeState(zero, zero, zero, kernel=zero.cross)

    def query(self, model: ProjectedBackbone, images: ModelImages) -> Query:
        """The features before the projection, which is far wider."""
        return model.backbone(images).astype(jnp.float32)

    def predict(
        self, model: ProjectedBackbone, state: RidgeState, images: ModelImages, query: Query
    ) -> Prediction:
        """Apply the solved head to the projected feature."""
        return Prediction(model.project(query) @ state.kernel)

    def observe(
        self, model: ProjectedBackbone, state: RidgeState, batch: Batch, task: Task, *, key: Key
    ) -> tuple[ProjectedBackbone, RidgeState]:
        """Add each image of a batch to one of the two parts of the task."""
        inputs = model.project(batch.query)
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


def solve_or_strengthen(total: Moments, ridge: Float[Array, ""]) -> Float[Array, "width classes"]:
    """Solve at `ridge`, or at the next power of ten at which rounding leaves a solution.

    The images of all tasks can need a stronger ridge than those of the task it was chosen on.
    """

    def fails(state: tuple[Array, Array]) -> Bool[Array, ""]:
        ridge, kernel = state
        return ~jnp.isfinite(kernel).all() & (ridge < RIDGES[-1])

    stronger = lambda state: (10 * state[0], total.solve(10 * state[0]))
    return jax.lax.while_loop(fails, stronger, (ridge, total.solve(ridge)))[1]


def best_ridge(fitted: Moments, held_out: Moments) -> Float[Array, ""]:
    """The ridge whose solution on one part has the smallest squared error on the other."""
    ridges = jnp.asarray(RIDGES)

    def error(ridge: Float[Array, ""]) -> Float[Array, ""]:
        # |h W - y|^2 summed over images, without |y|^2, which is the same for all ridges.
        kernel = fitted.solve(ridge)
        predicted = exact_einsum("ij,jc->ic", held_out.gram, kernel)
        square = (kernel * (predicted - 2 * held_out.cross)).sum()
        return jnp.where(jnp.isfinite(square), square, jnp.inf)

    return ridges[jax.lax.map(error, ridges).argmin()]
