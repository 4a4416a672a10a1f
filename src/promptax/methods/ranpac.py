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
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, PyTree

from promptax.core.errors import UserError
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractClassifier, ModelImages, Prediction
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier
from promptax.nn.prompt import Vote

_RIDGES = tuple(10.0**power for power in range(-8, 9))


class Projected(AbstractBackbone):
    """A frozen random projection, and a ReLU, on top of a backbone."""

    backbone: AbstractBackbone
    projection: Float32[Array, "dim projected"]

    @property
    def dim(self) -> int:
        """Width of the projection."""
        return self.projection.shape[1]

    @property
    def image(self) -> int:
        """That of the backbone."""
        return self.backbone.image

    def project(self, features: Float[Array, "batch dim"]) -> Float32[Array, "batch projected"]:
        """Of features of the backbone."""
        return jax.nn.relu(features.astype(jnp.float32) @ self.projection)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch projected"]:
        """The projected features of images."""
        return self.project(self.backbone(images))


class Moments(eqx.Module):
    """Sums over images of products of features, with themselves and with one-hot labels."""

    gram: Float32[Array, "projected projected"]
    cross: Float32[Array, "projected classes"]

    @classmethod
    def zero(cls, width: int, classes: int) -> "Moments":
        """Of no image."""
        return cls(jnp.zeros((width, width)), jnp.zeros((width, classes)))

    @classmethod
    def of(
        cls,
        h: Float[Array, "batch projected"],
        y: Float[Array, "batch classes"],
        weight: Float[Array, " batch"],
    ) -> "Moments":
        """Of the images of weight 1."""
        weighted = h * weight[:, None]
        return cls(weighted.T @ h, weighted.T @ y)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross)


class Streamed(eqx.Module):
    """Moments of all earlier tasks, and of two parts of the current one."""

    earlier: Moments
    fitted: Moments
    held_out: Moments


class RanPAC(AbstractClassifier):
    """RanPAC: ridge regression on a random projection of frozen features, in one pass."""

    width: int = 10_000
    """Width of the random projection (M)."""
    ridge: float | None = None
    """Strength of the ridge (lambda); None: chosen on each task."""
    train_backbone: bool = eqx.field(default=False, init=False)

    steps: ClassVar[bool] = False
    observes: ClassVar[bool] = True

    def __check_init__(self):
        if self.width < 1:
            raise UserError(f"width of the projection is {self.width}; expected at least 1.")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise UserError(f"ridge is {self.ridge}; expected a finite number above 0.")

    def init(
        self, backbone: AbstractBackbone, num_classes: int, *, key: PRNGKeyArray
    ) -> Classifier:
        """A zero head on the projection, drawn from the standard normal distribution."""
        projection = jr.normal(key, (backbone.dim, self.width))
        return Classifier(Projected(backbone, projection), num_classes)

    def query(self, model: Classifier, images: ModelImages) -> Float32[Array, "batch query"]:
        """The features before the projection, which is far wider."""
        return _projected(model).backbone(images).astype(jnp.float32)

    def predict(
        self,
        model: Classifier,
        images: ModelImages,
        query: Float32[Array, "batch query"],
        *,
        vote: Vote | None = None,
    ) -> Prediction:
        """The head on the projected feature."""
        return super().predict(model, images, _projected(model).project(query))

    def memory(self, model: Classifier, stream: TaskStream) -> Streamed:
        """No image yet."""
        zero = lambda: Moments.zero(self.width, stream.num_classes)
        return Streamed(zero(), zero(), zero())

    def observe(
        self,
        model: Classifier,
        memory: Streamed,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Streamed:
        """Add a batch, four fifths of it to what is fitted."""
        h = model.features(images)
        y = jax.nn.one_hot(batch.label, memory.earlier.cross.shape[1])
        fitted = jr.bernoulli(key, 0.8, batch.weight.shape)
        return Streamed(
            memory.earlier,
            memory.fitted + Moments.of(h, y, batch.weight * fitted),
            memory.held_out + Moments.of(h, y, batch.weight * ~fitted),
        )

    def end_task(self, model: Classifier, memory: Streamed, task: Task) -> tuple[PyTree, Streamed]:
        """Choose the ridge on the task, and solve for all tasks."""
        total = memory.earlier + memory.fitted + memory.held_out
        if self.ridge is None:
            ridge = best_ridge(memory.fitted, memory.held_out)
            kernel = solve_from(total, ridge)
        else:
            kernel = solve(total, jnp.asarray(self.ridge))
        zero = jax.tree.map(jnp.zeros_like, total)
        model = eqx.tree_at(lambda model: model.head.kernel, model, kernel)
        return model, Streamed(total, zero, zero)


def solve(moments: Moments, ridge: Float[Array, ""]) -> Float[Array, "projected classes"]:
    """`(G + ridge I)^-1 C`; not a number where rounding leaves the matrix indefinite."""
    matrix = moments.gram + ridge * jnp.eye(len(moments.gram))
    return jax.scipy.linalg.solve(matrix, moments.cross, assume_a="pos")


def solve_from(total: Moments, ridge: Float[Array, ""]) -> Float[Array, "projected classes"]:
    """The solution at `ridge`, or the next power of ten at which rounding leaves one: the images of
    all tasks can ask for a stronger ridge than those of the task that it was chosen on."""

    def fails(state: tuple[Array, Array]) -> Bool[Array, ""]:
        return ~jnp.isfinite(state[1]).all() & (state[0] < _RIDGES[-1])

    stronger = lambda state: (10 * state[0], solve(total, 10 * state[0]))
    return jax.lax.while_loop(fails, stronger, (ridge, solve(total, ridge)))[1]


def best_ridge(fitted: Moments, held_out: Moments) -> Float[Array, ""]:
    """The ridge whose solution on one part errs least on the other."""
    ridges = jnp.asarray(_RIDGES)

    def error(ridge: Float[Array, ""]) -> Float[Array, ""]:
        # |h W - y|^2 summed over images, without |y|^2, which is the same for all.
        kernel = solve(fitted, ridge)
        square = (kernel * (held_out.gram @ kernel - 2 * held_out.cross)).sum()
        return jnp.where(jnp.isfinite(square), square, jnp.inf)

    return ridges[jax.lax.map(error, ridges).argmin()]


def _projected(model: Classifier) -> Projected:
    assert isinstance(model.backbone, Projected), "made by `init`"
    return model.backbone
