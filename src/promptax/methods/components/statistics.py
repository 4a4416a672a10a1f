"""How the features of a class are summarised, so that features can be drawn from it later."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float32, Int32, PRNGKeyArray

from promptax.core.precision import exact_einsum
from promptax.core.settings import MOST_SAMPLES, require_count
from promptax.data.stream import TaskStream
from promptax.methods.components.feature_sample import FeatureSample
from promptax.methods.components.gaussians import AbstractClassStatistics, Factors, Gaussians
from promptax.methods.components.kmeans import k_means, nearest


class Centroids(AbstractClassStatistics):
    """Each class as a mixture of Gaussians with diagonal covariances, one for each K-means cluster.

    The features of a task are kept until it ends, and clustered then.
    """

    sample: FeatureSample
    """Features of the current task."""
    mean: Float32[Array, "classes clusters dim"]
    variance: Float32[Array, "classes clusters dim"]
    """Mean squared distances from the mean, along each dimension."""
    count: Float32[Array, "classes clusters"]
    """Features of a cluster; 0 if it has none."""

    @classmethod
    def empty(cls, classes: int, clusters: int, sample: FeatureSample) -> "Centroids":
        """No centroid yet; `sample` gives the room for the features of a task."""
        shape = (classes, clusters, sample.feature.shape[1])
        return cls(sample, jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape[:2]))

    def add(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
    ) -> "Centroids":
        """Keep the features of a batch until the task ends."""
        sample = self.sample.add(feature, label, weight)
        return Centroids(sample, self.mean, self.variance, self.count)

    def concluded(self, *, key: PRNGKeyArray) -> "Centroids":
        """Find the centroids of the classes that have features, and forget the features."""

        def clusters_of(label: Int32[Array, ""]) -> tuple[Array, Array, Array]:
            valid = self.sample.taken & (self.sample.label == label)
            find = lambda: self._clusters(valid, jr.fold_in(key, label))
            keep = lambda: (self.mean[label], self.variance[label], self.count[label])
            return jax.lax.cond(valid.any(), find, keep)

        # One class after another: only for those of the task does K-means run at all.
        labels = jnp.arange(len(self.mean), dtype=jnp.int32)
        mean, variance, count = jax.lax.map(clusters_of, labels)
        return Centroids(self.sample.cleared(), mean, variance, count)

    def _clusters(self, valid: Array, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """Means, variances and sizes of the clusters of some rows of the sample."""
        points = self.sample.feature
        clusters = self.mean.shape[1]
        own = nearest(points, k_means(points, valid, clusters, key=key))
        member = jax.nn.one_hot(own, clusters) * valid[:, None]
        count = member.sum(0)
        divisor = jnp.maximum(count, 1)[:, None]
        mean = exact_einsum("pc,pd->cd", member, points) / divisor
        square = jnp.square(points - mean[own])
        return mean, exact_einsum("pc,pd->cd", member, square) / divisor, count

    def centres(self) -> tuple[Float32[Array, "rows dim"], Float32[Array, " rows"]]:
        """All centroids, with weight 0 for clusters without a feature."""
        dim = self.mean.shape[2]
        return self.mean.reshape(-1, dim), (self.count.reshape(-1) > 0).astype(jnp.float32)

    def factors(self, ridge: float = 1e-4) -> Factors:
        """The Gaussians of all clusters; a cluster of equal features (of one, say) is left out."""
        classes, clusters, dim = self.mean.shape
        variance = self.variance.reshape(-1, dim)
        return Factors(
            mean=self.mean.reshape(-1, dim),
            factor=jnp.sqrt(variance + ridge),
            seen=(self.count.reshape(-1) > 0) & (variance.mean(1) > 0),
            label=jnp.repeat(jnp.arange(classes, dtype=jnp.int32), clusters),
        )


class FeatureStatistics(eqx.Module):
    """How the features of each class are summarised."""

    class_statistics: Literal["covariance", "variance", "centroids"] = "covariance"
    """One Gaussian per class with its whole covariance, or with variances alone (far less memory);
    or several centroids per class, each with variances."""
    centroids: int = 10
    """Centroids per class, if there are several."""
    feature_sample: int = 10_000
    """Largest number of features per task that are kept until it ends, for what needs all of them
    at once."""

    def __check_init__(self):
        require_count("centroids", self.centroids, MOST_SAMPLES)
        require_count("feature sample", self.feature_sample, MOST_SAMPLES)

    def empty(self, slots: int, dim: int, stream: TaskStream) -> AbstractClassStatistics:
        """Statistics of no feature, for classes in `slots` slots."""
        if self.class_statistics == "centroids":
            sample = FeatureSample.empty(stream, dim, self.feature_sample)
            return Centroids.empty(slots, self.centroids, sample)
        return Gaussians.empty(slots, dim, diagonal=self.class_statistics == "variance")
