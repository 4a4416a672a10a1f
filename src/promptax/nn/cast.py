"""Frozen weights in the type that a ViT computes in, so that no step has to cast them again."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from promptax.nn.lora import AdaptedViT
from promptax.nn.vit import ViT

_MATRICES = lambda vit: (
    vit.patch_kernel,
    vit.patch_bias,
    vit.blocks.attention.qkv,
    vit.blocks.attention.qkv_bias,
    vit.blocks.attention.out,
    vit.blocks.attention.out_bias,
    vit.blocks.mlp.hidden.kernel,
    vit.blocks.mlp.hidden.bias,
    vit.blocks.mlp.out.kernel,
    vit.blocks.mlp.out.bias,
)
"""What a ViT casts to its type wherever it uses it. LayerNorms compute in float32."""


def cast_frozen(frozen: PyTree) -> PyTree:
    """Cast the matrices and biases of every ViT to the type that it computes in.

    A forward pass gives the same bits, since it casts them in the same way. This is for computing
    only: checkpoints and exported weights must be made from the float32 values.

    Args:
        frozen: a model, or its frozen part, with None in the place of what is trained.

    Returns:
        The same tree; a ViT in float32, and one that a LoRA is added to, share their arrays with
        `frozen`. A LoRA must be added to float32 kernels: only their sum is rounded.
    """
    is_backbone = lambda node: isinstance(node, ViT | AdaptedViT)
    return jax.tree.map(_cast, frozen, is_leaf=is_backbone)


def _cast(node: Any) -> Any:
    if not isinstance(node, ViT) or node.dtype == "float32":
        return node
    cast = lambda leaf: leaf if leaf is None else leaf.astype(node.dtype)
    return eqx.tree_at(_MATRICES, node, replace_fn=cast, is_leaf=lambda leaf: leaf is None)
