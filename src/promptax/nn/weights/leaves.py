"""The parameters of a `ViT` under the names and in the shapes of Google's `.npz` files.

These names are also the ones that this library writes, and the common form into which every other
naming is converted. One named array is called a leaf, as in a JAX pytree.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from promptax.nn.vit import Block, ViT, ViTConfig
from promptax.nn.weights.check import Shape, grid_side

PATCH = "embedding/kernel"
PATCH_BIAS = "embedding/bias"
CLASS = "cls"
POSITION = "Transformer/posembed_input/pos_embedding"
PRE_NORM = "Transformer/pre_norm/"
"""CLIP's LayerNorm before the first block. Google has no such model; the name is ours."""
NORM = "Transformer/encoder_norm/"
BLOCK = "Transformer/encoderblock_{}/"
# The names below follow the name of a block.
ATTENTION_NORM = "LayerNorm_0/"
ATTENTION = "MultiHeadDotProductAttention_0/"
MLP_NORM = "LayerNorm_1/"
HIDDEN = "MlpBlock_0/Dense_0/"
OUT = "MlpBlock_0/Dense_1/"

_TOP: Mapping[str, Callable[[ViT], Array]] = {
    PATCH: lambda vit: vit.patch_kernel,
    PATCH_BIAS: lambda vit: vit.patch_bias,
    CLASS: lambda vit: vit.cls_token,
    POSITION: lambda vit: vit.position,
    NORM + "scale": lambda vit: vit.norm.scale,
    NORM + "bias": lambda vit: vit.norm.bias,
}
_PRE_NORM: Mapping[str, Callable[[Any], Array]] = {
    PRE_NORM + "scale": lambda vit: vit.pre_norm.scale,
    PRE_NORM + "bias": lambda vit: vit.pre_norm.bias,
}
# Query, key and value are missing here: a file has three arrays of each block, a `Block` has one.
_BLOCK: Mapping[str, Callable[[Block], Array]] = {
    ATTENTION_NORM + "scale": lambda block: block.attention_norm.scale,
    ATTENTION_NORM + "bias": lambda block: block.attention_norm.bias,
    ATTENTION + "out/kernel": lambda block: block.attention.out,
    ATTENTION + "out/bias": lambda block: block.attention.out_bias,
    MLP_NORM + "scale": lambda block: block.mlp_norm.scale,
    MLP_NORM + "bias": lambda block: block.mlp_norm.bias,
    HIDDEN + "kernel": lambda block: block.mlp.hidden.kernel,
    HIDDEN + "bias": lambda block: block.mlp.hidden.bias,
    OUT + "kernel": lambda block: block.mlp.out.kernel,
    OUT + "bias": lambda block: block.mlp.out.bias,
}
_QKV = ("query", "key", "value")
"""In the order in which a `Block` stacks them."""


def vit_leaves(vit: ViT) -> dict[str, Array]:
    """The parameters of a ViT under the names and in the shapes of the `.npz` files."""
    leaves = {name: get(vit) for name, get in _top(vit).items()}
    # The files have a batch axis here.
    leaves[CLASS] = leaves[CLASS][None, None]
    leaves[POSITION] = leaves[POSITION][None]
    # A `ViT` stacks its blocks along the first axis; the files have separate arrays.
    stacked = {name: get(vit.blocks) for name, get in _BLOCK.items()}
    for part, name in enumerate(_QKV):
        stacked[f"{ATTENTION}{name}/kernel"] = vit.blocks.attention.qkv[:, :, part]
        stacked[f"{ATTENTION}{name}/bias"] = vit.blocks.attention.qkv_bias[:, part]
    for block in range(vit.config.depth):
        leaves |= {BLOCK.format(block) + name: leaf[block] for name, leaf in stacked.items()}
    return leaves


def vit_from_leaves(like: ViT, leaves: Mapping[str, Array | np.ndarray]) -> ViT:
    """A ViT of the shape of `like` with these parameters: the inverse of `vit_leaves`."""

    def stack(name: str) -> np.ndarray:
        return np.stack([leaves[BLOCK.format(i) + name] for i in range(like.config.depth)])

    def stack_qkv(part: str) -> np.ndarray:
        parts = [stack(f"{ATTENTION}{name}/{part}") for name in _QKV]
        return np.stack(parts, axis=-3)

    def parameters(vit: ViT) -> list[Any]:
        """In the order of `values` below; not always arrays, since `tree_at` calls this too."""
        attention = vit.blocks.attention
        return [
            *(get(vit) for get in _top(vit).values()),
            *(get(vit.blocks) for get in _BLOCK.values()),
            attention.qkv,
            attention.qkv_bias,
        ]

    values = [leaves[name].reshape(get(like).shape) for name, get in _top(like).items()]
    values += [stack(name) for name in _BLOCK]
    values += [stack_qkv("kernel"), stack_qkv("bias")]
    return eqx.tree_at(parameters, like, [jnp.asarray(value, jnp.float32) for value in values])


def leaf_shapes(config: ViTConfig) -> dict[str, Shape]:
    """The shape of every leaf of a ViT."""
    skeleton = eqx.filter_eval_shape(lambda: ViT(config, key=jr.key(0)))
    return {name: leaf.shape for name, leaf in jax.eval_shape(vit_leaves, skeleton).items()}


def resize_position(
    position: Float[np.ndarray, "1 tokens dim"], tokens: int
) -> Float[np.ndarray, "1 new_tokens dim"]:
    """Resize a position embedding to another number of tokens.

    The part of the patches is a picture of their grid and is interpolated bilinearly; the part of
    the class token is kept (Dosovitskiy et al., 2021, section 3.2).
    """
    if position.shape[1] == tokens:
        return position
    old_side = grid_side(position.shape[1])
    new_side = grid_side(tokens)
    grid = position[0, 1:].astype(np.float32).reshape(old_side, old_side, -1)
    grid = jax.image.resize(grid, (new_side, new_side, grid.shape[-1]), "bilinear")
    patches = np.asarray(grid).reshape(1, new_side**2, -1)
    return np.concatenate([position[:, :1], patches], axis=1)


def _top(vit: ViT) -> dict[str, Callable[[ViT], Array]]:
    """The leaves outside the blocks, with those of the optional parts that this ViT has."""
    return {**_TOP, **({} if vit.pre_norm is None else _PRE_NORM)}
