"""The parameters of a `ViT` under the names of Google's `.npz` files, which are ours too."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from promptax.core.errors import UserError
from promptax.nn.vit import Block, ViT, ViTConfig

Leaves = Mapping[str, np.ndarray]
Shape = tuple[int, ...]

PATCH = "embedding/kernel"
PATCH_BIAS = "embedding/bias"
CLASS = "cls"
POSITION = "Transformer/posembed_input/pos_embedding"
PRE_NORM = "Transformer/pre_norm/"
"""No model of Google's has this layer; the name is ours."""
NORM = "Transformer/encoder_norm/"
BLOCK = "Transformer/encoderblock_{}/"
ATTENTION = "MultiHeadDotProductAttention_0/"
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
# Of a block, all but query, key and value, which a `Block` holds as one array.
_PLAIN: Mapping[str, Callable[[Block], Array]] = {
    "LayerNorm_0/scale": lambda block: block.attention_norm.scale,
    "LayerNorm_0/bias": lambda block: block.attention_norm.bias,
    ATTENTION + "out/kernel": lambda block: block.attention.out,
    ATTENTION + "out/bias": lambda block: block.attention.out_bias,
    "LayerNorm_1/scale": lambda block: block.mlp_norm.scale,
    "LayerNorm_1/bias": lambda block: block.mlp_norm.bias,
    HIDDEN + "kernel": lambda block: block.mlp.hidden.kernel,
    HIDDEN + "bias": lambda block: block.mlp.hidden.bias,
    OUT + "kernel": lambda block: block.mlp.out.kernel,
    OUT + "bias": lambda block: block.mlp.out.bias,
}


def vit_leaves(vit: ViT) -> dict[str, Array]:
    """The parameters of a ViT under the names, and in the shapes, of the `.npz` files."""
    leaves = {name: get(vit) for name, get in _top(vit).items()}
    leaves[CLASS] = leaves[CLASS][None, None]
    leaves[POSITION] = leaves[POSITION][None]
    stacked = {name: get(vit.blocks) for name, get in _PLAIN.items()}
    for part, name in enumerate(("query", "key", "value")):
        stacked[f"{ATTENTION}{name}/kernel"] = vit.blocks.attention.qkv[:, :, part]
        stacked[f"{ATTENTION}{name}/bias"] = vit.blocks.attention.qkv_bias[:, part]
    for block in range(vit.config.depth):
        leaves |= {BLOCK.format(block) + name: leaf[block] for name, leaf in stacked.items()}
    return leaves


def vit_from_leaves(like: ViT, leaves: Mapping[str, Array | np.ndarray]) -> ViT:
    """The inverse of `vit_leaves`: a ViT of the shape of `like` with these parameters."""

    def stack(name: str) -> np.ndarray:
        return np.stack([leaves[BLOCK.format(i) + name] for i in range(like.config.depth)])

    def qkv(part: str) -> np.ndarray:
        parts = [stack(f"{ATTENTION}{name}/{part}") for name in ("query", "key", "value")]
        return np.stack(parts, axis=-3)

    values = [leaves[name].reshape(get(like).shape) for name, get in _top(like).items()]
    values += [stack(name) for name in _PLAIN] + [qkv("kernel"), qkv("bias")]
    return eqx.tree_at(_parameters, like, [jnp.asarray(value, jnp.float32) for value in values])


def leaf_shapes(config: ViTConfig) -> dict[str, Shape]:
    """The shape of every leaf of a ViT."""
    skeleton = eqx.filter_eval_shape(lambda: ViT(config, key=jr.key(0)))
    return {name: leaf.shape for name, leaf in jax.eval_shape(vit_leaves, skeleton).items()}


def resize_position(
    position: Float[np.ndarray, "1 tokens dim"], tokens: int
) -> Float[np.ndarray, "1 new_tokens dim"]:
    """Interpolate the grid part bilinearly to another number of patches; the class token's
    embedding is kept (Dosovitskiy et al., 2021, section 3.2)."""
    if position.shape[1] == tokens:
        return position
    old, new = _side(position.shape[1]), _side(tokens)
    grid = position[0, 1:].astype(np.float32).reshape(old, old, -1)
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "bilinear")
    return np.concatenate([position[:, :1], np.asarray(grid).reshape(1, new * new, -1)], axis=1)


def square(file: str, leaf: str, tokens: int) -> int:
    """Patches along a side of a position embedding. Raises `UserError` if it is no square."""
    side = _side(tokens)
    if tokens != 1 + side**2 or not side:
        raise UserError(
            f"{file}: '{leaf}' should hold a class token and a square of patches, "
            f"but has {tokens} tokens."
        )
    return side


def shape_of(file: str, leaves: Leaves, leaf: str, rank: int) -> Shape:
    """The shape of a leaf. Raises `UserError` if it is missing or has another rank."""
    if leaf not in leaves:
        raise UserError(f"{file}: the leaf '{leaf}' is missing: is this a ViT's file?")
    shape = leaves[leaf].shape
    if len(shape) != rank:
        raise UserError(f"{file}: '{leaf}' should have {rank} axes, but has shape {shape}.")
    return shape


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Blocks of a ViT, by the highest number in a name that begins with the prefix."""
    pattern = re.compile(re.escape(prefix).replace(r"\{\}", r"(\d{1,4})"))
    return 1 + max((int(match[1]) for match in map(pattern.match, names) if match), default=0)


def check_leaves(
    file: str, expected: Mapping[str, Shape], leaves: Leaves, model: str = "ViT"
) -> None:
    """Raise `UserError` for the first leaf that is missing, extra, misshaped, not of floats or
    not finite."""
    if missing := sorted(set(expected) - set(leaves)):
        raise UserError(f"{file}: the leaf '{missing[0]}' is missing ({len(missing)} in all).")
    if extra := sorted(set(leaves) - set(expected)):
        raise UserError(
            f"{file}: the leaf '{extra[0]}' is not part of a {model} ({len(extra)} in all)."
        )
    for name, shape in expected.items():
        leaf = leaves[name]
        if leaf.shape != shape:
            raise UserError(f"{file}: '{name}' should have shape {shape}, but has {leaf.shape}.")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"{file}: '{name}' should hold floats, but has {leaf.dtype}.")
        if not np.isfinite(leaf).all():
            raise UserError(f"{file}: '{name}' holds values that are not finite.")


def _side(tokens: int) -> int:
    """Patches along a side, where so many tokens include the class token."""
    return round(max(tokens - 1, 0) ** 0.5)


def _top(vit: ViT) -> dict[str, Callable[[ViT], Array]]:
    return {**_TOP, **({} if vit.pre_norm is None else _PRE_NORM)}


def _parameters(vit: ViT) -> list[Any]:
    attention = vit.blocks.attention
    return [
        *(get(vit) for get in _top(vit).values()),
        *(get(vit.blocks) for get in _PLAIN.values()),
        attention.qkv,
        attention.qkv_bias,
    ]
