"""The Vision Transformer (Dosovitskiy et al., 2021), the only one of the library.

It has the two hooks that prompting needs: tokens put in front at the entry of any block
(prompt tuning) and keys and values put in front inside any block (prefix tuning).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.core.sharding import whole
from promptax.nn.adapter import Adapter
from promptax.nn.attention import Attention, pad_tokens
from promptax.nn.attention import Prefix as Prefix
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.execution import AUTO, PLAIN, Execution, Plan, plan
from promptax.nn.layers import LayerNorm, Mlp, rows, xavier
from promptax.nn.layers import Linear as Linear
from promptax.nn.pooling import AttentionPool
from promptax.nn.rotary import Rotary
from promptax.nn.sizes import SIZES as SIZES
from promptax.nn.sizes import Activation as Activation
from promptax.nn.sizes import Pooling as Pooling
from promptax.nn.sizes import ViTConfig
from promptax.nn.sizes import vit_config as vit_config

Tokens = Float[Array, "batch _ dim"]


class Block(eqx.Module):
    """Pre-norm transformer block."""

    attention_norm: LayerNorm
    attention: Attention
    mlp_norm: LayerNorm
    mlp: Mlp
    attention_scale: Float32[Array, "*stack dim"] | None
    mlp_scale: Float32[Array, "*stack dim"] | None
    adapter: Adapter | None
    """Beside the MLP; `promptax.nn.tuned` puts it there."""

    def __init__(self, config: ViTConfig, *, key: PRNGKeyArray):
        attention_key, mlp_key = jr.split(key)
        self.attention_norm = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            bias=config.qkv_bias,
            head_norm_eps=config.norm_eps if config.qk_norm else None,
            key=attention_key,
        )
        self.mlp_norm = LayerNorm(config.dim, config.norm_eps)
        self.mlp = Mlp(
            config.dim, config.mlp, config.activation, gated=config.gated_mlp, key=mlp_key
        )
        self.attention_scale = jnp.ones(config.dim) if config.layer_scale else None
        self.mlp_scale = jnp.ones(config.dim) if config.layer_scale else None
        self.adapter = None

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        prefix: Prefix | None = None,
        *,
        read: int | None = None,
        tokens: int | None = None,
        rotary: Rotary | None = None,
        plan: Plan = PLAIN,
    ) -> Float[Array, "batch read dim"]:
        """Run the block on a sequence.

        Args:
            x: the sequence.
            prefix: keys and values in front of those of the tokens; see `Attention`.
            read: compute the output of so many of the first tokens only; None: of all.
            tokens: how many rows of `x` are tokens; the rest is padding. None: all.
            rotary: the rotations of queries and keys; None: there are none.
            plan: how to compute it on this device.
        """
        recompute = plan.elementwise == "recomputed"
        batch = x.shape[0]
        # The tokens of all images are the rows of one matrix, except in attention. In this shape,
        # XLA fuses the addition of the residual into a product on a GPU without writing over it.
        # With an axis for the images, it copies and transposes activations.
        stream = rows(x)
        normed = self.attention_norm(stream, recompute=recompute)
        attended = self.attention(
            normed.reshape(x.shape),
            prefix,
            read=read,
            tokens=tokens,
            rotary=rotary,
            kernel=plan.attention,
        )
        if read is not None:
            stream = rows(x[:, :read])
        stream = stream + _scaled(rows(attended), self.attention_scale)
        computed = self.mlp(self.mlp_norm(stream, recompute=recompute), recompute=recompute)
        out = stream + _scaled(computed, self.mlp_scale)
        if self.adapter is not None:
            out = out + self.adapter(stream)
        return out.reshape(batch, -1, x.shape[-1])


def _scaled(
    x: Float[Array, "rows dim"], scale: Float[Array, " dim"] | None
) -> Float[Array, "rows dim"]:
    """LayerScale, where the model has it."""
    return x if scale is None else x * scale.astype(x.dtype)


class ViT(AbstractBackbone):
    """A Vision Transformer: patch embedding, blocks, final LayerNorm; no head.

    A sequence has the class token first, then the registers, then the patches. Prompts are put in
    front of all of them, or behind the class token, so that the patches are always the last tokens.
    A parameter that the config does not ask for is None.

    Parameters are float32; `dtype` is the type that it computes in (softmax and LayerNorm
    stay in float32). The parameters of all blocks are stacked along a leading `depth` axis.
    """

    patch_kernel: Float32[Array, "patch patch channel dim"]
    patch_bias: Float32[Array, " dim"]
    cls_token: Float32[Array, " dim"] | None
    registers: Float32[Array, "registers dim"] | None
    position: Float32[Array, "positions dim"] | None
    pre_norm: LayerNorm | None
    blocks: Block
    norm: LayerNorm
    pool: AttentionPool | None
    config: ViTConfig = eqx.field(static=True)
    dtype: Literal["float32", "bfloat16"] = eqx.field(static=True)
    execution: Execution = eqx.field(static=True)

    def __init__(
        self,
        config: ViTConfig,
        *,
        key: PRNGKeyArray,
        dtype: Literal["float32", "bfloat16"] = "float32",
        execution: Execution = AUTO,
    ):
        """A ViT with random weights.

        Args:
            config: its shape.
            key: for the weights.
            dtype: the type to compute in.
            execution: how to arrange the computation; by default as suits the device.
        """
        patch_key, cls_key, position_key, blocks_key = jr.split(key, 4)
        shape = (config.patch, config.patch, config.channels, config.dim)
        self.patch_kernel = xavier(patch_key, shape, math.prod(shape[:3]), config.dim)
        self.patch_bias = jnp.zeros(config.dim)
        self.cls_token = None
        self.registers = None
        self.position = None
        self.pool = None
        if config.class_token:
            self.cls_token = 0.02 * jr.normal(cls_key, (config.dim,))
        if config.registers:
            registers_key = jr.fold_in(cls_key, 1)
            self.registers = 0.02 * jr.normal(registers_key, (config.registers, config.dim))
        if config.learned_positions:
            shape = (config.learned_positions, config.dim)
            self.position = 0.02 * jr.normal(position_key, shape)
        if config.pooling == "attention":
            self.pool = AttentionPool(config, key=jr.fold_in(cls_key, 2))
        make_block = lambda key: Block(config, key=key)
        self.blocks = eqx.filter_vmap(make_block)(jr.split(blocks_key, config.depth))
        self.pre_norm = LayerNorm(config.dim, config.norm_eps) if config.pre_norm else None
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.config = config
        self.dtype = dtype
        self.execution = execution

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.config.dim

    @property
    def image(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.config.image

    def patches(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch patches dim"]:
        """Patch embeddings without position, the input of the `mean` and `max` queries.

        Raises `UserError` if the images do not have the size of the model.
        """
        size = self.config.image
        patch = self.config.patch
        grid = self.config.grid
        expected = (size, size, self.config.channels)
        if images.shape[1:] != expected:
            raise UserError(f"this ViT takes images of {expected}, got {images.shape[1:]}.")
        # With stride = patch the convolution is one matrix product over flattened patches.
        x = images[:, : grid * patch, : grid * patch].astype(self.dtype)
        x = x.reshape(x.shape[0], grid, patch, grid, patch, -1)
        x = jnp.einsum("bgphqc,pqcd->bghd", x, self.patch_kernel.astype(x.dtype))
        x = x + self.patch_bias.astype(x.dtype)
        return x.reshape(x.shape[0], grid * grid, -1)

    def tokens(
        self, patches: Float[Array, "batch patches dim"]
    ) -> Float[Array, "batch tokens dim"]:
        """The input of the first block: the class token, registers and patches with their learned
        positions, normalised where the model has such a layer."""
        batch = patches.shape[0]
        x = patches
        if self.config.positions == "patches" and self.position is not None:
            x = x + self.position.astype(x.dtype)
        if self.registers is not None and self.config.positions != "class_and_patches":
            x = _put_in_front(self.registers, x)
        if self.cls_token is not None:
            cls = jnp.broadcast_to(self.cls_token, (batch, 1, self.config.dim))
            x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
        if self.config.positions == "class_and_patches" and self.position is not None:
            x = x + self.position.astype(x.dtype)
            if self.registers is not None:
                behind = _put_in_front(self.registers, x[:, 1:])
                x = jnp.concatenate([x[:, :1], behind], axis=1)
        return x if self.pre_norm is None else self.pre_norm(x)

    def encode(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        prefixes: Mapping[int, Prefix] | None = None,
        inserts: Mapping[int, Float[Array, "batch _ dim"]] | None = None,
        read: int | None = None,
    ) -> Float[Array, "batch read dim"]:
        """Run the blocks and the final LayerNorm.

        Args:
            x: the sequence at the entry of the first block.
            prefixes: by block, keys and values put in front inside its attention.
            inserts: by block, tokens put in front of the sequence at its entry. The sequence keeps
                them, so it grows.
            read: how many of the first tokens are wanted; the last block computes no others. All
                of them, if None.
        """
        return self.norm(self._through_blocks(x, prefixes or {}, inserts or {}, read))

    def _through_blocks(
        self,
        x: Tokens,
        prefixes: Mapping[int, Prefix],
        inserts: Mapping[int, Tokens],
        read: int | None,
        replace: bool = False,
    ) -> Tokens:
        batch, tokens, _ = x.shape
        inserted = 0
        longest = tokens + sum(insert.shape[1] for insert in inserts.values())
        arrangement = plan(self.execution, self.config, self.dtype, batch=batch, tokens=longest)
        # The sequence is padded once rather than in every block. Nothing attends to the padding.
        x = pad_tokens(x, arrangement.multiple)
        for start, stop in _segments(self.config.depth, prefixes, inserts, read):
            if start in inserts:
                insert = inserts[start].astype(x.dtype)
                dropped = inserted if replace else 0
                x = jnp.concatenate([insert, x[:, dropped:tokens]], axis=1)
                inserted = insert.shape[1]
                tokens += inserted - dropped
                x = pad_tokens(x, arrangement.multiple)
            stacked = [prefixes[block] for block in range(start, stop) if block in prefixes]
            last = stop == self.config.depth
            x = self._run(x, start, stop, stacked, read if last else None, tokens, arrangement)
        return x[:, :tokens]

    def _run(
        self,
        x: Tokens,
        start: int,
        stop: int,
        prefixes: list[Prefix],
        read: int | None,
        tokens: int,
        arrangement: Plan,
    ) -> Tokens:
        """Blocks `start` to `stop`, which have the same sequence and prefixes of one shape."""

        rotary = None
        if self.config.positions == "rotary":
            rotary = Rotary.of(self.config, tokens, rows=x.shape[1])

        def run(block: Block, x: Tokens, prefix: Prefix | None) -> Tokens:
            return whole(block)(
                x, prefix, read=read, tokens=tokens, rotary=rotary, plan=arrangement
            )

        if arrangement.blocks == "scan" and stop - start > 1:

            def body(x: Tokens, block_and_prefix):
                return run(block_and_prefix[0], x, block_and_prefix[1]), None

            blocks = jax.tree.map(lambda leaf: leaf[start:stop], self.blocks)
            # Inside a scan nothing can be merged across the barrier that `prevent_cse` sets.
            body = _recomputed(body, arrangement, prevent_cse=False)
            return jax.lax.scan(body, x, (blocks, jnp.stack(prefixes) if prefixes else None))[0]

        run = _recomputed(run, arrangement)
        for number in range(start, stop):
            block = jax.tree.map(lambda leaf, number=number: leaf[number], self.blocks)
            x = run(block, x, prefixes[number - start] if prefixes else None)
        return x

    def feature(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        prefixes: Mapping[int, Prefix] | None = None,
        inserts: Mapping[int, Float[Array, "batch _ dim"]] | None = None,
        replace: bool = False,
    ) -> Float[Array, "batch dim"]:
        """The feature vector of each image, pooled as `config.pooling` says.

        If the patches are pooled, prompts are not among them: they act only inside the blocks, as
        prompts beside a class token do.

        Args:
            x: the sequence at the entry of the first block, with nothing in front of it.
            prefixes: as in `encode`.
            inserts: as in `encode`.
            replace: let each insert take the place of the one before it (deep prompt tuning),
                instead of keeping both.
        """
        pooling = self.config.pooling
        inserts = inserts or {}
        prefixes = prefixes or {}
        if pooling == "token":
            # In the order of the blocks, whatever that of the mapping.
            lengths = [inserts[block].shape[1] for block in sorted(inserts)]
            first = sum(lengths[-1:] if replace else lengths)
            x = self._through_blocks(x, prefixes, inserts, first + 1, replace)
            return self.norm(x)[:, first]
        x = self._through_blocks(x, prefixes, inserts, None, replace)
        patches = x[:, x.shape[1] - self.config.patches :]
        if pooling == "mean":
            return self.norm(patches.astype(jnp.float32).mean(1)).astype(x.dtype)
        patches = self.norm(patches)
        if self.pool is not None:
            return self.pool(patches)
        return patches.astype(jnp.float32).mean(1).astype(x.dtype)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The feature vector of each image, pooled as `config.pooling` says."""
        return self.feature(self.tokens(self.patches(images)))


def _put_in_front(
    tokens: Float32[Array, "length dim"], x: Float[Array, "batch _ dim"]
) -> Float[Array, "batch _ dim"]:
    """The sequence with the same tokens in front of it for each example."""
    repeated = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape))
    return jnp.concatenate([repeated, x], axis=1)


def _segments(
    depth: int, prefixes: Mapping, inserts: Mapping, read: int | None
) -> list[tuple[int, int]]:
    """Runs of blocks that one scan can serve: same sequence, same prefix length, same output."""

    def breaks(block: int) -> bool:
        shapes = [prefixes[b].shape if b in prefixes else None for b in (block - 1, block)]
        shortened = read is not None and block == depth - 1
        return block in inserts or shapes[0] != shapes[1] or shortened

    edges = [0, *(block for block in range(1, depth) if breaks(block)), depth]
    return list(itertools.pairwise(edges))


def _recomputed(function: Callable, arrangement: Plan, *, prevent_cse: bool = True) -> Callable:
    """The function, of which the backward pass computes again what the plan says."""
    if arrangement.remat == "nothing":
        return function
    # "projections": the outputs of the matrix products with weights are kept for the backward pass.
    # What is cheap to compute again (norms, activations, attention) and what is gathered from other
    # devices is not kept. That takes a third of the memory and, on a CPU, whose steps wait for
    # memory, less time.
    policies = jax.checkpoint_policies
    keep = policies.dots_with_no_batch_dims_saveable if arrangement.remat == "projections" else None
    return jax.checkpoint(function, prevent_cse=prevent_cse, policy=keep)
