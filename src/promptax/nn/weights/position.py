"""Resize a learned position embedding for another image size, as the owners of a model do."""

import math
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

Resize = Literal["bilinear", "bicubic", "bicubic_antialias"]
"""How the picture of position vectors is resized: linearly, as for Google's models; by PyTorch's
bicubic interpolation, as in the code of DeiT, DINO, MAE and transformers' DINOv2; or by that with
antialiasing, as in timm, OpenCLIP and DINOv2 with registers."""

_TORCH_CUBIC = -0.75
"""The parameter of PyTorch's cubic kernel. Its antialiased one has -0.5, as JAX's has."""


def resize_position(
    position: Float[np.ndarray, "1 positions dim"],
    positions: int,
    *,
    prefix: int = 1,
    method: Resize = "bilinear",
) -> Float[np.ndarray, "1 new_positions dim"]:
    """Resize a position embedding to another number of positions.

    The part of the patches is a picture of their grid and is interpolated; the part of the class
    token is kept (Dosovitskiy et al., 2021, section 3.2).

    Args:
        position: the embedding, first that of the tokens in front of the patches.
        positions: the number of positions wanted.
        prefix: how many positions are those of tokens in front of the patches.
        method: how to interpolate.
    """
    if position.shape[1] == positions:
        return position
    old_side = math.isqrt(position.shape[1] - prefix)
    new_side = math.isqrt(positions - prefix)
    grid = position[0, prefix:].astype(np.float32).reshape(old_side, old_side, -1)
    if method == "bicubic":
        matrix = _cubic_weights(old_side, new_side)
        resized = np.einsum("ab,cd,bdk->ack", matrix, matrix, grid)
    else:
        kind = "bilinear" if method == "bilinear" else "cubic"
        resized = jax.image.resize(grid, (new_side, new_side, grid.shape[-1]), kind)
    patches = np.asarray(resized, np.float32).reshape(1, new_side**2, -1)
    return np.concatenate([position[:, :prefix], patches], axis=1)


def _cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """How much each old place on a line counts for each new one, as PyTorch computes it.

    Four neighbours count, whatever the scale; beyond the edge, the last one is repeated.
    """
    place = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(place).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        neighbour = below + offset
        weight = _cubic(np.abs(place - neighbour))
        np.add.at(weights, (np.arange(new), np.clip(neighbour, 0, old - 1)), weight)
    return weights.astype(np.float32)


def _cubic(distance: Float[np.ndarray, " places"]) -> Float[np.ndarray, " places"]:
    """Keys' cubic convolution kernel."""
    a = _TORCH_CUBIC
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)
