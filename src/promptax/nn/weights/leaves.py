"""The parameters of a `ViT` under the names and in the shapes of Google's `.npz` files.

These names are also the ones that this library writes, and the common form into which every other
naming is converted. One named array is called a leaf, as in a JAX pytree.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from promptax.nn.execution import AUTO, Execution
from promptax.nn.vit import ViT, ViTConfig
from promptax.nn.weights.check import Shape

PATCH = "embedding/kernel"
PATCH_BIAS = "embedding/bias"
CLASS = "cls"
POSITION = "Transformer/posembed_input/pos_embedding"
NORM = "Transformer/encoder_norm/"
BLOCK = "Transformer/encoderblock_{}/"
# The names below follow the name of a block.
ATTENTION_NORM = "LayerNorm_0/"
ATTENTION = "MultiHeadDotProductAttention_0/"
MLP_NORM = "LayerNorm_1/"
HIDDEN = "MlpBlock_0/Dense_0/"
OUT = "MlpBlock_0/Dense_1/"

# What Google's ViT does not have. The names are ours.
PRE_NORM = "Transformer/pre_norm/"
"""CLIP's LayerNorm before the first block."""
REGISTERS = "registers"
# These follow the name of a block.
QUERY_NORM = ATTENTION + "query_norm/"
KEY_NORM = ATTENTION + "key_norm/"
ATTENTION_SCALE = "LayerScale_0"
MLP_SCALE = "LayerScale_1"
GATE = "MlpBlock_0/Dense_gate/"

POOL = "MAPHead_0/"
"""Attention pooling, under the names of Google's big_vision. Its layers have the names of those of
a block."""
PROBE = POOL + "probe"
POOL_NORM = POOL + "LayerNorm_0/"

_QKV = ("query", "key", "value")
"""In the order in which a `Block` stacks them."""
_QKV_FIELDS = {"kernel": "qkv", "bias": "qkv_bias"}
"""The fields of `Attention` in which a `Block` stacks them."""
_Getters = Mapping[str, Callable[[Any], Array]]
"""By the name of a leaf, how to get it from a module."""


def vit_leaves(vit: ViT) -> dict[str, Array]:
    """The parameters of a ViT under the names and in the shapes of the `.npz` files."""
    config = vit.config
    leaves = {name: get(vit) for name, get in _top(config).items()}
    for name in (CLASS, PROBE):
        if name in leaves:
            leaves[name] = leaves[name][None, None]
    # The files have a batch axis here.
    for name in (POSITION, REGISTERS):
        if name in leaves:
            leaves[name] = leaves[name][None]
    if vit.pool is not None:
        parts = _split_qkv(vit.pool.attention.qkv, vit.pool.attention.qkv_bias)
        leaves |= {POOL + name: leaf for name, leaf in parts.items()}
    # A `ViT` stacks its blocks along the first axis; the files have separate arrays.
    stacked = {name: get(vit.blocks) for name, get in _block(config).items()}
    stacked |= _split_qkv(vit.blocks.attention.qkv, vit.blocks.attention.qkv_bias)
    for block in range(config.depth):
        leaves |= {BLOCK.format(block) + name: leaf[block] for name, leaf in stacked.items()}
    return leaves


def _split_qkv(kernel: Array, bias: Array | None) -> dict[str, Array]:
    """Query, key and value apart: a file has three arrays of each, a module has one."""
    leaves = {}
    for part, name in enumerate(_QKV):
        leaves[f"{ATTENTION}{name}/kernel"] = kernel[..., part, :, :]
        if bias is not None:
            leaves[f"{ATTENTION}{name}/bias"] = bias[..., part, :, :]
    return leaves


def vit_from_leaves(like: ViT, leaves: Mapping[str, Array | np.ndarray]) -> ViT:
    """A ViT of the shape of `like` with these parameters: the inverse of `vit_leaves`."""
    config = like.config
    parts = ("kernel", "bias") if config.qkv_bias else ("kernel",)

    def stack(name: str) -> np.ndarray:
        return np.stack([leaves[BLOCK.format(i) + name] for i in range(config.depth)])

    def stack_qkv(part: str) -> np.ndarray:
        return np.stack([stack(f"{ATTENTION}{name}/{part}") for name in _QKV], axis=-3)

    def parameters(vit: ViT) -> list[Any]:
        """In the order of `values` below; not always arrays, since `tree_at` calls this too."""
        found = [get(vit) for get in _top(config).values()]
        found += [get(vit.blocks) for get in _block(config).values()]
        found += [getattr(vit.blocks.attention, _QKV_FIELDS[part]) for part in parts]
        if config.pooling == "attention":
            pool: Any = vit.pool
            found += [pool.attention.qkv, pool.attention.qkv_bias]
        return found

    values = [leaves[name].reshape(get(like).shape) for name, get in _top(config).items()]
    values += [stack(name) for name in _block(config)]
    values += [stack_qkv(part) for part in parts]
    if config.pooling == "attention":
        for part in ("kernel", "bias"):
            pooling = [leaves[f"{POOL}{ATTENTION}{name}/{part}"] for name in _QKV]
            values.append(np.stack(pooling, axis=-3))
    # With another type than NumPy's, or with none, JAX would compile a program for each shape.
    arrays = [jnp.asarray(np.asarray(value, np.float32), jnp.float32) for value in values]
    return eqx.tree_at(parameters, like, arrays)


def leaf_shapes(config: ViTConfig) -> dict[str, Shape]:
    """The shape of every leaf of a ViT."""
    return dict(_leaf_shapes(config))


@functools.cache
def _leaf_shapes(config: ViTConfig) -> dict[str, Shape]:
    leaves = jax.eval_shape(vit_leaves, skeleton(config, "float32", AUTO))
    return {name: leaf.shape for name, leaf in leaves.items()}


@functools.cache
def skeleton(config: ViTConfig, dtype: Literal["float32", "bfloat16"], execution: Execution) -> ViT:
    """A ViT with shapes in the place of arrays. It is kept, since it takes a while to trace."""
    make = lambda: ViT(config, key=jr.key(0), dtype=dtype, execution=execution)
    return eqx.filter_eval_shape(make)


def _top(config: ViTConfig) -> _Getters:
    """The leaves outside the blocks that a ViT has, without attention's joint projections."""
    leaves: dict[str, Callable[[Any], Array]] = {
        PATCH: lambda vit: vit.patch_kernel,
        PATCH_BIAS: lambda vit: vit.patch_bias,
    }
    if config.class_token:
        leaves[CLASS] = lambda vit: vit.cls_token
    if config.learned_positions:
        leaves[POSITION] = lambda vit: vit.position
    leaves |= _norm(NORM, lambda vit: vit.norm)
    if config.pre_norm:
        leaves |= _norm(PRE_NORM, lambda vit: vit.pre_norm)
    if config.registers:
        leaves[REGISTERS] = lambda vit: vit.registers
    if config.pooling == "attention":
        leaves[PROBE] = lambda vit: vit.pool.probe
        leaves |= _norm(POOL_NORM, lambda vit: vit.pool.norm)
        leaves |= _linear(POOL + HIDDEN, lambda vit: vit.pool.mlp.hidden)
        leaves |= _linear(POOL + OUT, lambda vit: vit.pool.mlp.out)
        leaves[POOL + ATTENTION + "out/kernel"] = lambda vit: vit.pool.attention.out
        leaves[POOL + ATTENTION + "out/bias"] = lambda vit: vit.pool.attention.out_bias
    return leaves


def _block(config: ViTConfig) -> _Getters:
    """The leaves of a block that a ViT has, without attention's joint projections."""
    leaves: dict[str, Callable[[Any], Array]] = {
        **_norm(ATTENTION_NORM, lambda block: block.attention_norm),
        ATTENTION + "out/kernel": lambda block: block.attention.out,
        ATTENTION + "out/bias": lambda block: block.attention.out_bias,
        **_norm(MLP_NORM, lambda block: block.mlp_norm),
        **_linear(HIDDEN, lambda block: block.mlp.hidden),
        **_linear(OUT, lambda block: block.mlp.out),
    }
    if config.gated_mlp:
        leaves |= _linear(GATE, lambda block: block.mlp.gate)
    if config.layer_scale:
        leaves[ATTENTION_SCALE] = lambda block: block.attention_scale
        leaves[MLP_SCALE] = lambda block: block.mlp_scale
    if config.qk_norm:
        leaves |= _norm(QUERY_NORM, lambda block: block.attention.query_norm)
        leaves |= _norm(KEY_NORM, lambda block: block.attention.key_norm)
    return leaves


def _norm(name: str, layer: Callable[[Any], Any]) -> dict[str, Callable[[Any], Array]]:
    return {
        f"{name}scale": lambda module: layer(module).scale,
        f"{name}bias": lambda module: layer(module).bias,
    }


def _linear(name: str, layer: Callable[[Any], Any]) -> dict[str, Callable[[Any], Array]]:
    return {
        f"{name}kernel": lambda module: layer(module).kernel,
        f"{name}bias": lambda module: layer(module).bias,
    }
