"""K-means on the device (Lloyd, 1982; seeded as k-means++: Arthur and Vassilvitskii, 2007)."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from promptax.core.precision import exact_einsum

ROUNDS = 50
"""Iterations of Lloyd's algorithm: a fixed number, so that the compiled loop has one length."""
STARTS = 10
"""Number of times that the algorithm starts, each time from other seeds, since it ends in a local
minimum. It is the default (`n_init`) up to version 1.3 of scikit-learn's `KMeans`, which the
authors of S-Prompts and HiDe-Prompt use."""


def k_means(
    points: Float[Array, "points dim"],
    valid: Bool[Array, " points"],
    clusters: int,
    *,
    key: PRNGKeyArray,
    starts: int = STARTS,
) -> Float[Array, "clusters dim"]:
    """Find the centroids of clusters of points: the best of several starts.

    A cluster that loses all its points stays where it was.

    Args:
        points: The points in rows.
        valid: Which rows are points; at least one.
        clusters: Number of clusters. If there are fewer points, some centroids are equal.
        key: Randomness of the seeds.
        starts: Number of starts.

    Returns:
        The centroids with the smallest sum of squared distances from each point to the nearest.
    """

    def move(_: Any, centroids: Float[Array, "clusters dim"]) -> Float[Array, "clusters dim"]:
        member = jax.nn.one_hot(nearest(points, centroids), clusters) * valid[:, None]
        count = member.sum(0)[:, None]
        sums = exact_einsum("pc,pd->cd", member, points)
        return jnp.where(count > 0, sums / jnp.maximum(count, 1), centroids)

    def start(key: PRNGKeyArray) -> tuple[Float[Array, "clusters dim"], Float[Array, ""]]:
        seeds = _seeds(points, valid, clusters, key)
        centroids = jax.lax.fori_loop(0, ROUNDS, move, seeds)
        return centroids, inertia(points, valid, centroids)

    # One after another: all starts at once would need memory for a matrix of distances each.
    centroids, inertias = jax.lax.map(start, jr.split(key, starts))
    return centroids[inertias.argmin()]


def inertia(
    points: Float[Array, "points dim"],
    valid: Bool[Array, " points"],
    centroids: Float[Array, "clusters dim"],
) -> Float[Array, ""]:
    """Sum of squared distances from each valid point to its nearest centroid."""
    square = jnp.square(points - centroids[nearest(points, centroids)]).sum(1)
    return jnp.where(valid, square, 0).sum()


def nearest(
    points: Float[Array, "points dim"], centroids: Float[Array, "clusters dim"]
) -> Int32[Array, " points"]:
    """The number of the centroid nearest to each point."""
    # |p - c|^2 without |p|^2, which is the same for all centroids.
    products = exact_einsum("pd,cd->pc", points, centroids)
    return (jnp.square(centroids).sum(1) - 2 * products).argmin(1).astype(jnp.int32)


def _seeds(
    points: Float[Array, "points dim"],
    valid: Bool[Array, " points"],
    clusters: int,
    key: PRNGKeyArray,
) -> Float[Array, "clusters dim"]:
    """Draw points one after another, with probability proportional to the squared distance to the
    nearest point drawn before."""

    def draw(
        square: Float[Array, " points"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " points"], Float[Array, " dim"]]:
        seed = points[jr.categorical(key, jnp.log(square))]
        return jnp.minimum(square, jnp.square(points - seed).sum(1)), seed

    # Equal distances at first, so that the first seed is any valid point; rows that are no points
    # have a distance of zero, as have points that were drawn, and are never drawn.
    start = jnp.where(valid, 1e30, 0.0)
    return jax.lax.scan(draw, start, jr.split(key, clusters))[1]
