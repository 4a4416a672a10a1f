"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on the one ViT: kernels plus narrow products.

The sums are made before each pass, which is little work beside it: a pass costs no more than
without, and the ViT needs no hook.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import ViT

_kernels = lambda vit: (
    vit.blocks.attention.qkv,
    vit.blocks.mlp.hidden.kernel,
    vit.blocks.mlp.out.kernel,
)
"""What a LoRA is added to."""


class LowRank(eqx.Module):
    """What is added to a kernel of each block: a product of two narrow matrices, 0 at first."""

    down: Float32[Array, "depth inputs rank"]
    up: Float32[Array, "depth rank outputs"]

    def __init__(self, kernel: Float32[Array, "depth inputs *outputs"], rank: int, key):
        """`down` is uniform within `1 / sqrt(inputs)`, as in the authors' code."""
        depth, inputs, *outputs = kernel.shape
        limit = 1 / math.sqrt(inputs)
        self.down = jr.uniform(key, (depth, inputs, rank), minval=-limit, maxval=limit)
        self.up = jnp.zeros((depth, rank, math.prod(outputs)))

    def __call__(
        self, kernel: Float32[Array, "depth inputs *outputs"]
    ) -> Float32[Array, "depth inputs *outputs"]:
        """The sum."""
        return kernel + (self.down @ self.up).reshape(kernel.shape)


class LoRA(eqx.Module):
    """Of each block: attention's queries, keys and values, and both layers of the MLP."""

    qkv: LowRank
    hidden: LowRank
    out: LowRank

    @classmethod
    def init(cls, vit: ViT, rank: int, *, key: PRNGKeyArray) -> "LoRA":
        """One that changes nothing yet. Raises `UserError` for a rank that is none."""
        if not 1 <= rank <= vit.dim:
            raise UserError(f"rank is {rank}; expected 1 to {vit.dim}, the width of the ViT.")
        keys = jr.split(key, 3)
        return cls(
            *(LowRank(kernel, rank, key) for kernel, key in zip(_kernels(vit), keys, strict=True))
        )

    def __call__(self, vit: ViT) -> ViT:
        """The ViT with the products added."""
        parts = (self.qkv, self.hidden, self.out)
        sums = [part(kernel) for part, kernel in zip(parts, _kernels(vit), strict=True)]
        return eqx.tree_at(_kernels, vit, sums)


class AdaptedViT(AbstractBackbone):
    """A ViT and what is added to it."""

    vit: ViT
    lora: LoRA

    @classmethod
    def init(cls, backbone: AbstractBackbone, rank: int, *, key: PRNGKeyArray) -> "AdaptedViT":
        """The backbone as it is. Raises `UserError` if it is no ViT, or for a rank that is none."""
        if not isinstance(backbone, ViT):
            raise UserError(
                f"LoRA needs a ViT: a {type(backbone).__name__} has no attention to adapt. Choose "
                "a ViT's weights, or a method that trains the whole backbone."
            )
        return cls(backbone, LoRA.init(backbone, rank, key=key))

    @property
    def dim(self) -> int:
        """That of the ViT."""
        return self.vit.dim

    @property
    def image(self) -> int:
        """That of the ViT."""
        return self.vit.image

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The features of the adapted ViT."""
        return self.lora(self.vit)(images)
