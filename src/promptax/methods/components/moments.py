"""Sums of products over images, from which linear maps are solved in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from promptax.core.precision import exact_einsum
from promptax.methods.base import Scalar


class Moments(eqx.Module):
    """Second moments of inputs x, and of inputs with targets y, summed over images in rows."""

    gram: Float32[Array, "inputs inputs"]
    """Sum of x x^T."""
    cross: Float32[Array, "inputs targets"]
    """Sum of x y^T."""

    @classmethod
    def zero(cls, inputs: int, targets: int) -> "Moments":
        """The moments of no image."""
        return cls(jnp.zeros((inputs, inputs)), jnp.zeros((inputs, targets)))

    @classmethod
    def of(
        cls,
        inputs: Float[Array, "batch inputs"],
        targets: Float[Array, "batch targets"],
        weight: Float[Array, " batch"],
    ) -> "Moments":
        """The moments of the images of weight 1 in a batch."""
        weighted = inputs * weight[:, None]
        return cls(
            gram=exact_einsum("bi,bj->ij", weighted, inputs),
            cross=exact_einsum("bi,bt->it", weighted, targets),
        )

    def solve(self, ridge: Scalar) -> Float[Array, "inputs targets"]:
        """The map W that minimises |x W - y|^2 + ridge |W|^2: `(G + ridge I)^-1 C`.

        NaN if rounding leaves the matrix indefinite.
        """
        matrix = self.gram + ridge * jnp.eye(len(self.gram))
        return jax.scipy.linalg.solve(matrix, self.cross, assume_a="pos")

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross)
