"""The choice of the ridge of a least-squares fit, from sums over two parts of the images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from promptax.core.precision import exact_einsum
from promptax.methods.components.moments import Moments

RIDGES = tuple(10.0**power for power in range(-8, 9))
"""The ridges that are tried."""


def solve_or_strengthen(total: Moments, ridge: Float[Array, ""]) -> Float[Array, "inputs targets"]:
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
