"""A sample of the features of the current task, for what needs them all at once after it.

K-means and gradient steps on features cannot be streamed as means and covariances can. The sample
is forgotten when the task ends.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from promptax.data.stream import TaskStream


class FeatureSample(eqx.Module):
    """Features of images of the current task, with their labels."""

    feature: Float32[Array, "sample dim"]
    label: Int32[Array, " sample"]
    count: Int32[Array, ""]
    """Number of features offered; the first of them were taken."""

    @classmethod
    def empty(cls, stream: TaskStream, dim: int, most: int) -> "FeatureSample":
        """A sample with room for a whole task of the stream, but for `most` features at most."""
        size = min(most, max(len(task.index) for task in stream.tasks))
        return cls(
            feature=jnp.zeros((size, dim)),
            label=jnp.zeros(size, jnp.int32),
            count=jnp.zeros((), jnp.int32),
        )

    @property
    def taken(self) -> Bool[Array, " sample"]:
        """Which rows hold a feature."""
        return jnp.arange(len(self.label)) < self.count

    def add(
        self,
        feature: Float32[Array, "batch dim"],
        label: Int32[Array, " batch"],
        weight: Float32[Array, " batch"],
    ) -> "FeatureSample":
        """Take the features of a batch while there is room: batches come in a random order."""
        # Examples of weight 0 are padding behind the last image of the task; `drop` ignores them.
        position = jnp.where(weight > 0, self.count + jnp.arange(len(label)), len(self.label))
        return FeatureSample(
            feature=self.feature.at[position].set(feature, mode="drop"),
            label=self.label.at[position].set(label, mode="drop"),
            count=self.count + (weight > 0).sum(dtype=jnp.int32),
        )

    def cleared(self) -> "FeatureSample":
        """The same without any feature."""
        return jax.tree.map(jnp.zeros_like, self)
