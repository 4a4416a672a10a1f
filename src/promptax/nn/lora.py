"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): low-rank updates of the kernels of a ViT.

The updates are added to the kernels before each forward pass. That is little work beside the pass
itself, which then costs no more than without LoRA, and `ViT` needs no code for it.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import ViT


class LowRank(eqx.Module):
    """An update of the kernels of all blocks: the product of two narrow matrices, zero at first."""

    down: Float32[Array, "depth inputs rank"]
    up: Float32[Array, "depth rank outputs"]

    def __init__(
        self, kernel: Float32[Array, "depth inputs *outputs"], rank: int, key: PRNGKeyArray
    ):
        """An update of the shape of `kernel`.

        `down` is uniform within `1 / sqrt(inputs)`, as in the authors' code.
        """
        depth, inputs, *outputs = kernel.shape
        limit = 1 / math.sqrt(inputs)
        self.down = jr.uniform(key, (depth, inputs, rank), minval=-limit, maxval=limit)
        self.up = jnp.zeros((depth, rank, math.prod(outputs)))

    def __call__(
        self, kernel: Float32[Array, "depth inputs *outputs"]
    ) -> Float32[Array, "depth inputs *outputs"]:
        """The updated kernel."""
        return kernel + (self.down @ self.up).reshape(kernel.shape)


class LoRA(eqx.Module):
    """Low-rank updates of every block: of attention's joint query, key and value projection, and of
    both layers of the MLP."""

    qkv: LowRank
    hidden: LowRank
    out: LowRank

    @classmethod
    def init(cls, vit: ViT, rank: int, *, key: PRNGKeyArray) -> "LoRA":
        """Updates that change nothing yet.

        Raises `UserError` if the rank is not between 1 and the width of the ViT.
        """
        if not 1 <= rank <= vit.dim:
            raise UserError(f"rank is {rank}; expected 1 to {vit.dim}, the width of the ViT.")
        keys = jr.split(key, 3)
        updates = [
            LowRank(kernel, rank, key) for kernel, key in zip(_kernels(vit), keys, strict=True)
        ]
        return cls(*updates)

    def __call__(self, vit: ViT) -> ViT:
        """The ViT with updated kernels."""
        updates = (self.qkv, self.hidden, self.out)
        kernels = [update(kernel) for update, kernel in zip(updates, _kernels(vit), strict=True)]
        return eqx.tree_at(_kernels, vit, kernels)


class AdaptedViT(AbstractBackbone):
    """A ViT with LoRA: a backbone of which only the updates need to be trained."""

    vit: ViT
    lora: LoRA

    @classmethod
    def init(cls, backbone: AbstractBackbone, rank: int, *, key: PRNGKeyArray) -> "AdaptedViT":
        """The backbone with updates that change nothing yet.

        Raises `UserError` if the backbone is not a ViT, and as `LoRA.init` does.
        """
        if not isinstance(backbone, ViT):
            raise UserError(
                f"LoRA needs a ViT: a {type(backbone).__name__} has no attention to adapt. Choose "
                "a ViT's weights, or a method that trains the whole backbone."
            )
        return cls(backbone, LoRA.init(backbone, rank, key=key))

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.vit.dim

    @property
    def image(self) -> int:
        """Side of the square images that the ViT takes, in pixels."""
        return self.vit.image

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The features of the adapted ViT."""
        return self.lora(self.vit)(images)


def _kernels(vit: ViT) -> tuple:
    """The kernels that LoRA updates, in the order of its fields."""
    blocks = vit.blocks
    return blocks.attention.qkv, blocks.mlp.hidden.kernel, blocks.mlp.out.kernel
