"""Rotary positions in two dimensions, as in DINOv3 (Simeoni et al., 2025, arXiv 2508.10104)."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from promptax.nn.sizes import ViTConfig


class Rotary(eqx.Module):
    """The angles by which the queries and keys of each token of a sequence are rotated.

    The angle is zero for tokens without a position: prompts, the class token and registers.
    """

    sine: Float32[Array, "rows head_dim"]
    cosine: Float32[Array, "rows head_dim"]

    def __call__(
        self, x: Float[Array, "batch heads tokens head_dim"]
    ) -> Float[Array, "batch heads tokens head_dim"]:
        """Rotate the queries or keys of as many first tokens as `x` has."""
        tokens = x.shape[2]
        half = x.shape[3] // 2
        y = x.astype(jnp.float32)
        turned = jnp.concatenate([-y[..., half:], y[..., :half]], axis=-1)
        return (y * self.cosine[:tokens] + turned * self.sine[:tokens]).astype(x.dtype)

    @classmethod
    def of(cls, config: ViTConfig, tokens: int, rows: int) -> "Rotary":
        """The rotations of a sequence whose last tokens are the patches.

        Args:
            config: the shape of the ViT.
            tokens: length of the sequence.
            rows: length of the sequence with the padding behind it.
        """
        angles = patch_angles(config.grid, config.dim // config.heads, config.rotary_period)
        around = ((tokens - config.patches, rows - tokens), (0, 0))
        angles = np.pad(angles, around)
        return cls(
            jnp.asarray(np.sin(angles), jnp.float32), jnp.asarray(np.cos(angles), jnp.float32)
        )


def patch_angles(grid: int, head_dim: int, period: float) -> Float[np.ndarray, "patches head_dim"]:
    """The angle by which each number of a patch's query or key is rotated, in radians.

    The first half of the numbers is rotated with the second half. In each half, one half of the
    angles is proportional to the vertical position of the patch's centre and the other half to its
    horizontal position, where the sides of the image are at -1 and 1; the periods grow
    geometrically from 1 towards `period`.

    Args:
        grid: patches along a side.
        head_dim: width of a head.
        period: the longest period.
    """
    centre = 2 * (np.arange(grid) + 0.5) / grid - 1
    height, width = np.meshgrid(centre, centre, indexing="ij")
    place = np.stack([height, width], axis=-1).reshape(grid**2, 2, 1)
    periods = period ** (np.arange(head_dim // 4) / (head_dim // 4))
    angles = (2 * math.pi * place / periods).reshape(grid**2, head_dim // 2)
    return np.tile(angles, 2)
