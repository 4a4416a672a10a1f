"""Frozen weights in the type that a ViT computes in, so that no step has to cast them again."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from promptax.nn.lora import AdaptedViT
from promptax.nn.vit import ViT


def _matrices(vit: ViT) -> list[Any]:
    """Leaves that a ViT casts to its type wherever it uses them. LayerNorms use float32."""
    # What is optional is asked of the config: `tree_at` puts other objects in the place of None.
    layers: list[Any] = [vit.blocks.mlp.hidden, vit.blocks.mlp.out]
    attentions: list[Any] = [vit.blocks.attention]
    pool: Any = vit.pool
    if vit.config.gated_mlp:
        layers.append(vit.blocks.mlp.gate)
    if vit.config.pooling == "attention":
        attentions.append(pool.attention)
        layers += [pool.mlp.hidden, pool.mlp.out]
    found: list[Any] = [vit.patch_kernel, vit.patch_bias]
    for attention in attentions:
        found += [attention.qkv, attention.qkv_bias, attention.out, attention.out_bias]
    for layer in layers:
        found += [layer.kernel, layer.bias]
    return found


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
    cast = _all_cast(_matrices(node), node.dtype)
    return eqx.tree_at(_matrices, node, cast, is_leaf=lambda leaf: leaf is None)


@eqx.filter_jit
def _all_cast(leaves: list[Array | None], dtype: str) -> list[Array | None]:
    """Cast in one program rather than in one for each shape."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), leaves)
