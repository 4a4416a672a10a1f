"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535): an adapter beside the MLP of a block.

With x the input of a block's second half, s a constant and relu between two narrow layers, the
block computes

    x + MLP(norm(x)) + s * up(relu(down(x)))
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.nn.layers import Linear


class Adapter(eqx.Module):
    """The adapter of a block, or those of all blocks stacked along a leading axis."""

    down: Linear
    up: Linear
    scale: float = eqx.field(static=True)

    @classmethod
    def init(
        cls, depth: int, dim: int, width: int, *, scale: float = 0.1, key: PRNGKeyArray
    ) -> "Adapter":
        """Make the adapters of all blocks, which change nothing yet.

        As in RanPAC's code (`petl/vision_transformer_adapter.py` at 012927f), `down` is uniform
        within `1 / sqrt(dim)` and the rest is zero. The dropout of 0.1 there is left out.

        Args:
            depth: Number of blocks.
            dim: Width of a token.
            width: Width of the bottleneck.
            scale: Factor of the output (s).
            key: For `down`.

        Raises:
            UserError: The bottleneck is not between 1 and the width of a token.
        """
        if not 1 <= width <= dim:
            raise UserError(
                f"the bottleneck of the adapters is {width} wide; expected 1 to {dim}, the width "
                "of the ViT."
            )
        limit = 1 / math.sqrt(dim)
        make = eqx.filter_vmap(Linear, axis_size=depth)
        kernel = jr.uniform(key, (depth, dim, width), minval=-limit, maxval=limit)
        down = eqx.tree_at(lambda linear: linear.kernel, make(dim, width), kernel)
        return cls(down, make(width, dim), scale)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Compute the part that one block's adapter adds to the output of the MLP."""
        scale = jnp.asarray(self.scale, x.dtype)
        return scale * self.up(jax.nn.relu(self.down(x)))
