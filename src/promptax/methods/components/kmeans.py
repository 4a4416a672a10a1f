"""K-means on the device (Lloyd, 1982; seeded as k-means++: Arthur and Vassilvitskii, 2007)."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from promptax.core.precision import exact_einsum

_ROUNDS = 50


def k_means(
    points: Float[Array, "points dim"],
    valid: Bool[Array, " points"],
    clusters: int,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "clusters dim"]:
    """The centroids of so many clusters of the valid points, of which there is at least one.

    With fewer points than clusters, points come more than once. A cluster that has lost all its
    points stays where it was.
    """

    def move(_: Any, centroids: Float[Array, "clusters dim"]) -> Float[Array, "clusters dim"]:
        label = jax.nn.one_hot(nearest(points, centroids), clusters) * valid[:, None]
        count = label.sum(0)[:, None]
        sums = exact_einsum("pc,pd->cd", label, points)
        return jnp.where(count > 0, sums / jnp.maximum(count, 1), centroids)

    return jax.lax.fori_loop(0, _ROUNDS, move, _seeds(points, valid, clusters, key))


def nearest(
    points: Float[Array, "points dim"], centroids: Float[Array, "clusters dim"]
) -> Int32[Array, " points"]:
    """The nearest centroid of each point."""
    # |p - c|^2 without |p|^2, which is the same for all.
    square = jnp.square(centroids).sum(1) - 2 * exact_einsum("pd,cd->pc", points, centroids)
    return square.argmin(1).astype(jnp.int32)


def _seeds(
    points: Float[Array, "points dim"], valid: Bool[Array, " points"], clusters: int, key
) -> Float[Array, "clusters dim"]:
    """Points drawn one after another, each by its squared distance to those before."""

    def draw(square: Float[Array, " points"], key: PRNGKeyArray):
        seed = points[jr.categorical(key, jnp.log(square))]
        return jnp.minimum(square, jnp.square(points - seed).sum(1)), seed

    # The first is any of the valid ones. Points that were drawn have a distance of zero.
    return jax.lax.scan(draw, jnp.where(valid, 1e30, 0.0), jr.split(key, clusters))[1]
