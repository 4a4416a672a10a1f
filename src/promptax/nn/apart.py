"""Frozen blocks that are stored apart rather than in stacks.

A ViT stacks the parameters of its blocks. Where a step lays the blocks out one after another, it
would have to copy each of them out of the stack, since XLA gives every operand of a matrix product
a buffer of its own.
"""

from typing import Any, Union

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from promptax.nn.execution import unrolls
from promptax.nn.lora import AdaptedViT
from promptax.nn.vit import Block, ViT

BLOCKS = 0
"""The axis of a stack that counts blocks."""
PROJECTIONS = (1, 0)
"""The axes that count query, key and value in the kernel and in the bias of one block, along which
`Attention.project` slices."""


class Apart(eqx.Module):
    """An array that is stored as its parts along an axis."""

    parts: tuple[Union[Array, "Apart"], ...]
    axis: int = eqx.field(static=True)


def take_apart(frozen: PyTree) -> PyTree:
    """Store apart the frozen blocks of every ViT that lays its blocks out one after another.

    Args:
        frozen: a model, or its frozen part, with None in the place of what is trained.

    Returns:
        The same tree, with an `Apart` in the place of each frozen array of those blocks. A ViT that
        a LoRA is added to stays as it is, since the sum is made for the whole stack.
    """
    is_backbone = lambda node: isinstance(node, ViT | AdaptedViT)
    return jax.tree.map(_take_vit_apart, frozen, is_leaf=is_backbone)


def put_together(tree: PyTree) -> PyTree:
    """Undo `take_apart`.

    In a compiled function, XLA replaces a slice of the stack by the part itself, so that stacking
    and slicing cost nothing. Outside of one, the parts are copied.
    """
    is_apart = lambda node: isinstance(node, Apart)
    return jax.tree.map(_stacked, tree, is_leaf=is_apart)


def _take_vit_apart(node: Any) -> Any:
    if not isinstance(node, ViT) or not unrolls(node.execution):
        return node
    return eqx.tree_at(lambda vit: vit.blocks, node, _take_blocks_apart(node.blocks))


@eqx.filter_jit
def _take_blocks_apart(blocks: Block) -> Block:
    projections = lambda blocks: (blocks.attention.qkv, blocks.attention.qkv_bias)
    kept = zip(projections(blocks), PROJECTIONS, strict=True)
    parts = [None if leaf is None else _split(leaf, BLOCKS, axis) for leaf, axis in kept]
    blocks = jax.tree.map(lambda leaf: _split(leaf, BLOCKS), blocks)
    is_stored = lambda node: node is None or isinstance(node, Apart)
    return eqx.tree_at(projections, blocks, tuple(parts), is_leaf=is_stored)


def _split(array: Array, axis: int, *axes: int) -> Apart:
    """Take an array apart along an axis, and its parts along the others."""
    parts = jnp.unstack(array, axis=axis)
    return Apart(tuple(_split(part, *axes) if axes else part for part in parts), axis)


def _stacked(node: Any) -> Any:
    if not isinstance(node, Apart):
        return node
    return jnp.stack([_stacked(part) for part in node.parts], node.axis)
