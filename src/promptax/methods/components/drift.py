"""How features drift while a backbone is trained: a linear map, fitted in closed form (SLDC)."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from promptax.methods.base import Scalar
from promptax.methods.components.moments import Moments


def drift_matrix(
    moments: Moments, examples: Int32[Array, ""], ridge: Scalar, smoothing: Scalar
) -> Float32[Array, "dim dim"]:
    """The matrix A that takes features before a task to features after it.

    Args:
        moments: Products of features before the task, with themselves and with those after it.
        examples: Number of images that the moments were collected from.
        ridge: Ridge of the least-squares fit (gamma).
        smoothing: How strongly few images are drawn towards the identity (alpha).
    """
    identity = jnp.eye(len(moments.gram))
    # Not by Cholesky, which rounding defeats: the ridge is tiny beside the largest eigenvalues.
    fitted = jnp.linalg.solve(moments.gram + ridge * identity, moments.cross)
    # Few images say little about the drift, so they are weighed against there being none.
    doubt = jnp.exp(-examples / (smoothing * len(moments.gram)))
    return (1 - doubt) * fitted + doubt * identity
