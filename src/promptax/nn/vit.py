"""The Vision Transformer (Dosovitskiy et al., 2021), the only one of the library.

It has the two hooks that prompting needs: tokens put in front at the entry of any block
(prompt tuning) and keys and values put in front inside any block (prefix tuning).
"""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError, unknown
from promptax.core.sharding import whole
from promptax.nn.backbone import AbstractBackbone

Prefix = Float[Array, "batch _ _ heads head_dim"]
"""Keys and values of one block, `[batch, kv, length, heads, head_dim]`; `kv` is 2, or 1 where
one array serves as both. Blocks can differ in both."""
Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]
"""Of the MLP: GELU by its tanh approximation, GELU itself, or `x * sigmoid(1.702 x)`."""
Pooling = Literal["token", "mean"]
"""What stands for an image: the class token after the final LayerNorm, or the final LayerNorm
of the mean of the patches (MAE's `fc_norm`)."""

_ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT, and what else differs between the published ones."""

    patch: int
    """Side of a square patch, in pixels."""
    dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; must divide `dim`."""
    mlp: int
    """Width of the hidden layer of the MLP."""
    image: int = 224
    """Side of a square input image, in pixels."""
    channels: int = 3
    """Input channels."""
    activation: Activation = "gelu_tanh"
    """Between the layers of the MLP."""
    norm_eps: float = 1e-6
    """Added to the variance by every LayerNorm."""
    pre_norm: bool = False
    """A LayerNorm in front of the first block (CLIP)."""
    pooling: Pooling = "token"
    """What stands for an image."""

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(f"ViT width {self.dim} is not divisible by {self.heads} heads.")
        if self.image < self.patch:
            raise UserError(f"image size {self.image} is smaller than the patch {self.patch}.")

    @property
    def grid(self) -> int:
        """Patches along a side (what is left over at the edge is not seen, as published)."""
        return self.image // self.patch


SIZES: Mapping[str, ViTConfig] = {
    "vit-s/16": ViTConfig(16, 384, 12, 6, 1536),
    "vit-b/16": ViTConfig(16, 768, 12, 12, 3072),
    "vit-b/32": ViTConfig(32, 768, 12, 12, 3072),
    "vit-b/16-2x2": ViTConfig(2, 768, 12, 12, 3072, image=32),
    "vit-b/16-4x4": ViTConfig(4, 768, 12, 12, 3072, image=32),
    "vit-l/16": ViTConfig(16, 1024, 24, 16, 4096),
    "vit-l/32": ViTConfig(32, 1024, 24, 16, 4096),
    "vit-h/14": ViTConfig(14, 1280, 32, 16, 5120),
}
"""The sizes of the published checkpoints."""


def vit_config(size: str, image: int | None = None) -> ViTConfig:
    """The config of a published size, for another image size where one is given.

    Raises `UserError` for a size that does not exist.
    """
    if size not in SIZES:
        raise unknown("ViT size", size, SIZES)
    config = SIZES[size]
    return config if image is None else replace(config, image=image)


class LayerNorm(eqx.Module):
    """Layer normalisation with float32 statistics."""

    scale: Float32[Array, "*stack dim"]
    bias: Float32[Array, "*stack dim"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-6):
        self.scale, self.bias, self.eps = jnp.ones(dim), jnp.zeros(dim), eps

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Normalise the last axis."""
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale + self.bias).astype(x.dtype)


class Linear(eqx.Module):
    """`x @ kernel + bias`, with float32 parameters cast to the type of `x`."""

    kernel: Float32[Array, "*stack inputs outputs"]
    bias: Float32[Array, "*stack outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray | None = None):
        """Xavier-uniform kernel and zero bias; all zero without a key."""
        shape = (inputs, outputs)
        self.kernel = jnp.zeros(shape) if key is None else _xavier(key, shape, inputs, outputs)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Apply to the last axis."""
        return x @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)


class Mlp(eqx.Module):
    """Two dense layers with an activation between them."""

    hidden: Linear
    out: Linear
    activation: Activation = eqx.field(static=True)

    def __init__(self, dim: int, mlp: int, activation: Activation, *, key: PRNGKeyArray):
        hidden, out = jr.split(key)
        self.hidden, self.out = Linear(dim, mlp, key=hidden), Linear(mlp, dim, key=out)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Apply to every token."""
        return self.out(_ACTIVATIONS[self.activation](self.hidden(x)))


class Attention(eqx.Module):
    """Multi-head self-attention whose keys and values a prefix can precede."""

    qkv: Float32[Array, "*stack dim 3 heads head_dim"]
    qkv_bias: Float32[Array, "*stack 3 heads head_dim"]
    out: Float32[Array, "*stack heads head_dim dim"]
    out_bias: Float32[Array, "*stack dim"]

    def __init__(self, dim: int, heads: int, *, key: PRNGKeyArray):
        qkv, out = jr.split(key)
        self.qkv = _xavier(qkv, (dim, 3, heads, dim // heads), dim, dim)
        self.qkv_bias = jnp.zeros((3, heads, dim // heads))
        self.out = _xavier(out, (heads, dim // heads, dim), dim, dim)
        self.out_bias = jnp.zeros(dim)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], prefix: Prefix | None, read: int | None
    ) -> Float[Array, "batch read dim"]:
        """Attend from the first `read` tokens (all, if None) to the prefix and all tokens."""
        query = self._project(x[:, :read], slice(0, 1))[0]
        key, value = self._project(x, slice(1, 3))
        if prefix is not None:
            # The order is [prefix, tokens]. A prefix has no position and is not projected.
            prefix = jnp.einsum("bclhk->cbhlk", prefix.astype(x.dtype))
            key = jnp.concatenate([prefix[0], key], axis=2)
            value = jnp.concatenate([prefix[-1], value], axis=2)
        mixed = _attend(query, key, value)
        out = jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(x.dtype))
        return out + self.out_bias.astype(x.dtype)

    def _project(self, x: Float[Array, "batch tokens dim"], part: slice):
        kernel, bias = self.qkv[:, part].astype(x.dtype), self.qkv_bias[part].astype(x.dtype)
        return jnp.einsum("btd,dchk->cbhtk", x, kernel) + bias[:, None, :, None]


def _attend(
    query: Float[Array, "batch heads query head_dim"],
    key: Float[Array, "batch heads token head_dim"],
    value: Float[Array, "batch heads token head_dim"],
) -> Float[Array, "batch heads query head_dim"]:
    # Plain matrix products: on a CPU they take half the time of `dot_product_attention`. What
    # softmax divides by is the same for a whole row, so it divides the product: fewer numbers.
    scale = 1 / math.sqrt(query.shape[-1])
    score = jnp.einsum("bhqd,bhtd->bhqt", query * scale, key, preferred_element_type=jnp.float32)
    weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqt,bhtd->bhqd", weight.astype(value.dtype), value)
    return (mixed / weight.sum(-1, keepdims=True)).astype(value.dtype)


class Block(eqx.Module):
    """Pre-norm transformer block."""

    attention_norm: LayerNorm
    attention: Attention
    mlp_norm: LayerNorm
    mlp: Mlp

    def __init__(self, config: ViTConfig, *, key: PRNGKeyArray):
        attention, mlp = jr.split(key)
        self.attention_norm = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.heads, key=attention)
        self.mlp_norm = LayerNorm(config.dim, config.norm_eps)
        self.mlp = Mlp(config.dim, config.mlp, config.activation, key=mlp)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        prefix: Prefix | None = None,
        read: int | None = None,
    ) -> Float[Array, "batch read dim"]:
        """The block's output at the first `read` tokens (all, if None)."""
        x = x[:, :read] + self.attention(self.attention_norm(x), prefix, read)
        return x + self.mlp(self.mlp_norm(x))


class ViT(AbstractBackbone):
    """A Vision Transformer: patch embedding, blocks, final LayerNorm; no head.

    Parameters are float32; `dtype` is the type that it computes in (softmax and LayerNorm
    stay in float32). Blocks are stacked along a leading `depth` axis and scanned, which
    halves the compile time.
    """

    patch_kernel: Float32[Array, "patch patch channel dim"]
    patch_bias: Float32[Array, " dim"]
    cls_token: Float32[Array, " dim"]
    position: Float32[Array, "tokens dim"]
    pre_norm: LayerNorm | None
    blocks: Block
    norm: LayerNorm
    config: ViTConfig = eqx.field(static=True)
    dtype: Literal["float32", "bfloat16"] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        config: ViTConfig,
        *,
        key: PRNGKeyArray,
        dtype: Literal["float32", "bfloat16"] = "float32",
        remat: bool = False,
    ):
        """Random weights. `remat` recomputes each block in the backward pass."""
        patch, cls, position, blocks = jr.split(key, 4)
        shape = (config.patch, config.patch, config.channels, config.dim)
        self.patch_kernel = _xavier(patch, shape, math.prod(shape[:3]), config.dim)
        self.patch_bias = jnp.zeros(config.dim)
        self.cls_token = 0.02 * jr.normal(cls, (config.dim,))
        self.position = 0.02 * jr.normal(position, (1 + config.grid**2, config.dim))
        make_block = lambda key: Block(config, key=key)
        self.blocks = eqx.filter_vmap(make_block)(jr.split(blocks, config.depth))
        self.pre_norm = LayerNorm(config.dim, config.norm_eps) if config.pre_norm else None
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.config, self.dtype, self.remat = config, dtype, remat

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
        size, patch, grid = self.config.image, self.config.patch, self.config.grid
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
    ) -> Float[Array, "batch 1+patches dim"]:
        """`[cls, patches]` with their position embedding, and normalised where the model has
        such a layer: the input of the first block."""
        cls = jnp.broadcast_to(self.cls_token, (patches.shape[0], 1, self.config.dim))
        x = jnp.concatenate([cls.astype(patches.dtype), patches], axis=1)
        x = x + self.position.astype(x.dtype)
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

        **Arguments:**

        - `prefixes`: by block, keys and values put in front inside its attention.
        - `inserts`: by block, tokens put in front of the sequence at its entry. The
            sequence keeps them, so it grows.
        - `read`: how many of the first tokens are wanted; the last block computes no
            others. All of them, if None.
        """
        return self.norm(self._through_blocks(x, prefixes or {}, inserts or {}, read))

    def _through_blocks(self, x, prefixes: Mapping, inserts: Mapping, read: int | None):
        for start, stop in _segments(self.config.depth, prefixes, inserts, read):
            if start in inserts:
                x = jnp.concatenate([inserts[start].astype(x.dtype), x], axis=1)
            stacked = [prefixes[block] for block in range(start, stop) if block in prefixes]
            x = self._run(x, start, stop, stacked, read if stop == self.config.depth else None)
        return x

    def _run(self, x, start: int, stop: int, prefixes: list[Prefix], read: int | None):
        blocks = jax.tree.map(lambda leaf: leaf[start:stop], self.blocks)
        # The backward pass is left the projections and the MLP's products; what is cheap to
        # compute again (norms, activations, attention) and what is gathered is not kept. That
        # takes a third of the memory and, since memory is what steps wait for, less time.
        policies = jax.checkpoint_policies
        keep = None if self.remat else policies.dots_with_no_batch_dims_saveable
        if stop - start == 1:
            block = jax.tree.map(lambda leaf: leaf[0], blocks)
            run = lambda block, x, prefix: whole(block)(x, prefix, read)
            return jax.checkpoint(run, policy=keep)(block, x, prefixes[0] if prefixes else None)

        def body(x, block_and_prefix):
            block, prefix = block_and_prefix
            return whole(block)(x, prefix), None

        # Inside a scan nothing can be merged across the barrier that `prevent_cse` sets.
        body = jax.checkpoint(body, prevent_cse=False, policy=keep)
        return jax.lax.scan(body, x, (blocks, jnp.stack(prefixes) if prefixes else None))[0]

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """What stands for each image, as `config.pooling` says."""
        x = self.tokens(self.patches(images))
        if self.config.pooling == "token":
            return self.encode(x, read=1)[:, 0]
        patches = self._through_blocks(x, {}, {}, None)[:, 1:]
        return self.norm(patches.astype(jnp.float32).mean(1)).astype(x.dtype)


def _segments(depth: int, prefixes: Mapping, inserts: Mapping, read: int | None):
    """Runs of blocks that one scan can serve: same sequence, same prefix length, same output."""

    def breaks(block: int) -> bool:
        shapes = [prefixes[b].shape if b in prefixes else None for b in (block - 1, block)]
        shortened = read is not None and block == depth - 1
        return block in inserts or shapes[0] != shapes[1] or shortened

    edges = [0, *(block for block in range(1, depth) if breaks(block)), depth]
    return list(itertools.pairwise(edges))


def _xavier(key: PRNGKeyArray, shape: tuple[int, ...], inputs: int, outputs: int):
    limit = math.sqrt(6 / (inputs + outputs))
    return jr.uniform(key, shape, minval=-limit, maxval=limit)
