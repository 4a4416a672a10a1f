"""Random rows that are orthonormal to one another and to rows that exist already."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from promptax.core.precision import exact_einsum

REMAINDER = 1e-5
"""A row whose part outside the span of earlier rows is shorter than this share of it is taken to
lie within the span: what is left of it are rounding errors."""


def orthonormal_rows(
    rows: Float[Array, "layers components *rest"],
    own: Bool[Array, " components"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "layers components *rest"]:
    """Draw some rows anew, orthonormal and orthogonal to the rows before them.

    Args:
        rows: All rows of each layer; every row is flattened.
        own: The rows that are drawn; rows before them keep their values.
        key: Randomness of the directions.
    """
    flat = rows.reshape(*rows.shape[:2], -1)
    drawn = jnp.where(own[:, None], jr.normal(key, flat.shape), flat)
    return jnp.where(own[:, None], jax.vmap(gram_schmidt)(drawn), flat).reshape(rows.shape)


def gram_schmidt(rows: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
    """Orthonormalise rows one after another; zero for a row in the span of those before it.

    Not `jnp.linalg.qr`, which can wait for ever if it is mapped over layers (jaxlib 0.10 runs a
    batch of decompositions on the CPU's threads, and waits for them on one of these threads).
    """

    def add(basis: Array, number: Array) -> tuple[Array, None]:
        row = rows[number]
        remainder = row
        # The second pass removes the rounding errors of a row that is nearly in the span.
        for _ in range(2):
            shadow = exact_einsum("rd,d->r", basis, remainder)
            remainder = remainder - exact_einsum("rd,r->d", basis, shadow)
        length = jnp.linalg.norm(remainder)
        is_new = length > REMAINDER * jnp.linalg.norm(row)
        return basis.at[number].set(jnp.where(is_new, remainder / length, 0)), None

    return jax.lax.scan(add, jnp.zeros_like(rows), jnp.arange(len(rows)))[0]


def orthogonality(
    rows: Float[Array, "layers components *rest"], used: Bool[Array, " components"]
) -> Float[Array, ""]:
    """Mean square of B B^T - I over the rows in use, summed over layers."""
    flat = rows.reshape(*rows.shape[:2], -1)
    excess = exact_einsum("gmd,gnd->gmn", flat, flat) - jnp.eye(flat.shape[1])
    square = jnp.where(used & used[:, None], jnp.square(excess), 0)
    return square.sum() / jnp.square(used.sum())
