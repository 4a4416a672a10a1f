"""Gaussian statistics of the features of each class, streamed on the device.

They stand in for earlier images if none may be kept: a head is trained on features drawn from them
(SLCA, SLDC, HiDe-Prompt).
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from promptax.core.precision import exact_einsum
from promptax.methods.base import Scalar


class Draws(eqx.Module):
    """Features that a head is trained on, drawn from the Gaussians of all classes."""

    feature: Float32[Array, "drawn dim"]
    label: Int32[Array, " drawn"]
    weight: Float32[Array, " drawn"]
    """1; 0 for a class that has not been seen."""


class Factors(eqx.Module):
    """Gaussians that are ready to be drawn from, made once by `Gaussians.factors`."""

    mean: Float32[Array, "rows dim"]
    factor: Float32[Array, "rows dim dim"] | Float32[Array, "rows dim"]
    """Lower Cholesky factors of the covariances, or standard deviations."""
    seen: Bool[Array, " rows"]
    label: Int32[Array, " rows"]
    """The label of what is drawn from each Gaussian; a class may have several."""

    def sample(self, each: int, *, key: PRNGKeyArray) -> Draws:
        """Draw a number of features from each Gaussian."""
        rows, dim = self.mean.shape
        noise = jr.normal(key, (rows, each, dim))
        if self.factor.ndim == 2:
            spread = self.factor[:, None] * noise
        else:
            spread = exact_einsum("cij,cnj->cni", self.factor, noise)
        feature = (self.mean[:, None] + spread).reshape(rows * each, dim)
        weight = jnp.repeat(self.seen.astype(jnp.float32), each)
        return Draws(feature, jnp.repeat(self.label, each), weight)

    def relabelled(self, label_of: Int32[Array, " labels"]) -> "Factors":
        """The same with `label_of[label]` for each label."""
        return Factors(self.mean, self.factor, self.seen, label_of[self.label])


class AbstractClassStatistics(eqx.Module):
    """Statistics of the features of each class, from which features can be drawn later."""

    @abstractmethod
    def add(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
    ) -> "AbstractClassStatistics":
        """Add the features of weight 1 of a batch to the statistics of their classes."""

    @abstractmethod
    def concluded(self, *, key: PRNGKeyArray) -> "AbstractClassStatistics":
        """The statistics after the last feature of a task."""

    @abstractmethod
    def centres(self) -> tuple[Float32[Array, "rows dim"], Float32[Array, " rows"]]:
        """The mean of each Gaussian, and its weight: 1, or 0 if it has no feature."""

    @abstractmethod
    def factors(self, ridge: float = 1e-4) -> Factors:
        """Prepare the Gaussians to be drawn from, with `ridge` added to every variance."""


class Gaussians(AbstractClassStatistics):
    """Mean and covariance, or variances alone, of the features of each class.

    Sums are kept about the mean and moved with it (Chan et al., 1979): differences of large sums of
    squares would cost float32 all its digits if a mean is far from zero.
    """

    count: Float32[Array, " classes"]
    mean: Float32[Array, "classes dim"]
    """0 for a class that has not been seen."""
    scatter: Float32[Array, "classes dim dim"] | Float32[Array, "classes dim"]
    """Sums of products (or of squares) of differences from the mean."""

    @classmethod
    def empty(cls, classes: int, dim: int, *, diagonal: bool = False) -> "Gaussians":
        """Statistics of no feature; `diagonal` keeps variances rather than covariances."""
        shape = (classes, dim) if diagonal else (classes, dim, dim)
        return cls(jnp.zeros(classes), jnp.zeros((classes, dim)), jnp.zeros(shape))

    @property
    def seen(self) -> Bool[Array, " classes"]:
        """The classes that have a feature."""
        return self.count > 0

    @property
    def covariance(self) -> Float32[Array, "classes dim dim"] | Float32[Array, "classes dim"]:
        """Covariances or variances, divided by n - 1; 0 for a class with a single feature."""
        shape = (-1,) + (1,) * (self.scatter.ndim - 1)
        return self.scatter / jnp.maximum(self.count - 1, 1).reshape(shape)

    def add(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
    ) -> "Gaussians":
        """Add the features of weight 1 of a batch to the statistics of their classes."""
        member = jax.nn.one_hot(label, len(self.count)) * weight[:, None]
        count = self.count + member.sum(0)
        # Features of padding may be anything, even NaN: they must not reach a product with 0.
        offset = jnp.where(weight[:, None] > 0, feature - self.mean[label], 0)
        shift = exact_einsum("bc,bi->ci", member, offset) / jnp.maximum(count, 1)[:, None]
        rest = jnp.where(weight[:, None] > 0, offset - shift[label], 0)
        if self.scatter.ndim == 2:
            new = exact_einsum("bc,bi->ci", member, jnp.square(rest))
            moved = self.count[:, None] * jnp.square(shift)
        else:
            new = exact_einsum("bc,bi,bj->cij", member, rest, rest)
            moved = self.count[:, None, None] * shift[:, :, None] * shift[:, None]
        return Gaussians(count, self.mean + shift, self.scatter + new + moved)

    def concluded(self, *, key: PRNGKeyArray) -> "Gaussians":
        """The same: these statistics are streamed."""
        return self

    def centres(self) -> tuple[Float32[Array, "classes dim"], Float32[Array, " classes"]]:
        """The mean of each class, with weight 0 for a class that has not been seen."""
        return self.mean, self.seen.astype(jnp.float32)

    def moved(
        self,
        matrix: Float32[Array, "dim dim"],
        which: Bool[Array, " classes"],
        ridge: Scalar = 0.0,
    ) -> "Gaussians":
        """Transform the statistics of some classes as if each feature f had been `f @ matrix`.

        Args:
            matrix: The linear map.
            which: The classes that are transformed.
            ridge: Added to their variances.
        """
        assert self.scatter.ndim == 3, "variances alone do not say what becomes of them"
        mean = exact_einsum("ci,ij->cj", self.mean, matrix)
        scatter = exact_einsum("cij,ik,jl->ckl", self.scatter, matrix, matrix)
        freedom = jnp.maximum(self.count - 1, 1)[:, None, None]
        scatter = scatter + freedom * ridge * jnp.eye(self.scatter.shape[1])
        return Gaussians(
            self.count,
            jnp.where(which[:, None], mean, self.mean),
            jnp.where(which[:, None, None], scatter, self.scatter),
        )

    def factors(self, ridge: float = 1e-4) -> Factors:
        """Decompose the covariances to draw from them, with `ridge` added to every variance.

        A class with fewer features than dimensions has a singular covariance. Its diagonal grows by
        as much as rounding can take from it in a Cholesky decomposition (Demmel, 1989), so that it
        exists whatever the scale of the features.
        """
        covariance = self.covariance
        label = jnp.arange(len(self.count), dtype=jnp.int32)
        if covariance.ndim == 2:
            return Factors(self.mean, jnp.sqrt(covariance + ridge), self.seen, label)
        identity = jnp.eye(covariance.shape[1])
        rounding = 2 * covariance.shape[1] * jnp.finfo(jnp.float32).eps
        regular = covariance * (1 + rounding * identity) + ridge * identity
        # One after another: jaxlib (0.10) decomposes a batch on the CPU's threads, and waits for it
        # on these same threads, so two batches in one program can wait for ever.
        return Factors(self.mean, jax.lax.map(jnp.linalg.cholesky, regular), self.seen, label)
