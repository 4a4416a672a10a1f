"""Multi-head self-attention: the ways to compute it, and the layer, which takes a prefix."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from promptax.nn.execution import CUDNN_MULTIPLE, Kernel
from promptax.nn.layers import LayerNorm, rows, xavier
from promptax.nn.rotary import Rotary

Prefix = Float[Array, "batch _ _ heads head_dim"]
"""Keys and values of one block, `[batch, kv, length, heads, head_dim]`; `kv` is 2, or 1 where
one array serves as both. Blocks can differ in both."""

_fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def attend(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch token heads head_dim"],
    value: Float[Array, "batch token heads head_dim"],
    *,
    kernel: Kernel = "plain",
    tokens: int | None = None,
) -> Float[Array, "batch query heads head_dim"]:
    """Softmax attention, scaled by the square root of the head's width.

    Args:
        query: one for each row of the result.
        key: compared with the queries.
        value: averaged with the weights that this gives.
        kernel: the way to compute it; see `promptax.nn.execution.plan`.
        tokens: how many of the keys count, from the first on. The others are padding, to which
            nothing attends and which gets no gradient. None: all.
    """
    tokens = key.shape[1] if tokens is None else tokens
    if kernel == "plain":
        parts = (query, key[:, :tokens], value[:, :tokens])
        return jnp.swapaxes(_attend_plainly(*(jnp.swapaxes(x, 1, 2) for x in parts)), 1, 2)
    queries = query.shape[1]
    query = pad_tokens(query, CUDNN_MULTIPLE)
    key = pad_tokens(key, CUDNN_MULTIPLE)
    value = pad_tokens(value, CUDNN_MULTIPLE)
    lengths = None if tokens == key.shape[1] else _lengths(query, tokens)
    # Rows of padding in the query are computed like all others, so that they hold finite numbers;
    # nobody reads them, so that their gradient is zero.
    return _fused(query, key, value, key_value_seq_lengths=lengths)[:, :queries]


def _lengths(query: Float[Array, "batch _ _ _"], tokens: int) -> Int32[Array, " batch"]:
    # The same number for each example, but as a function of the query: it is then split over
    # devices and mapped by `vmap` as the query is, which cuDNN's call needs. XLA drops the term.
    return tokens + 0 * jax.lax.stop_gradient(query[:, 0, 0, 0]).astype(jnp.int32)


def _attend_plainly(
    query: Float[Array, "batch heads query head_dim"],
    key: Float[Array, "batch heads token head_dim"],
    value: Float[Array, "batch heads token head_dim"],
) -> Float[Array, "batch heads query head_dim"]:
    # Plain matrix products: on a CPU they take half the time of `dot_product_attention`. The
    # divisor of softmax is the same for a whole row, so it divides the product: fewer numbers.
    scale = 1 / math.sqrt(query.shape[-1])
    score = jnp.einsum("bhqd,bhtd->bhqt", query * scale, key, preferred_element_type=jnp.float32)
    weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqt,bhtd->bhqd", weight.astype(value.dtype), value)
    return (mixed / weight.sum(-1, keepdims=True)).astype(value.dtype)


def pad_tokens(x: Float[Array, "batch tokens *rest"], multiple: int) -> Array:
    """Append zeros to the token axis up to the next multiple."""
    missing = -x.shape[1] % multiple
    if missing == 0:
        return x
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))


class Attention(eqx.Module):
    """Multi-head self-attention whose keys and values a prefix can precede."""

    qkv: Float32[Array, "*stack dim 3 heads head_dim"]
    qkv_bias: Float32[Array, "*stack 3 heads head_dim"] | None
    out: Float32[Array, "*stack heads head_dim dim"]
    out_bias: Float32[Array, "*stack dim"]
    query_norm: LayerNorm | None
    key_norm: LayerNorm | None

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        head_norm_eps: float | None = None,
        key: PRNGKeyArray,
    ):
        """Random kernels and zero biases.

        Args:
            dim: width of a token.
            heads: number of heads.
            bias: have biases in the projections to queries, keys and values.
            head_norm_eps: the epsilon of LayerNorms on the queries and keys of each head; None:
                have no such layers.
            key: for the kernels.
        """
        qkv_key, out_key = jr.split(key)
        head_dim = dim // heads
        self.qkv = xavier(qkv_key, (dim, 3, heads, head_dim), dim, dim)
        self.qkv_bias = jnp.zeros((3, heads, head_dim)) if bias else None
        self.out = xavier(out_key, (heads, head_dim, dim), dim, dim)
        self.out_bias = jnp.zeros(dim)
        has_norms = head_norm_eps is not None
        self.query_norm = LayerNorm(head_dim, head_norm_eps) if has_norms else None
        self.key_norm = LayerNorm(head_dim, head_norm_eps) if has_norms else None

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        prefix: Prefix | None = None,
        *,
        read: int | None = None,
        tokens: int | None = None,
        rotary: Rotary | None = None,
        kernel: Kernel = "plain",
    ) -> Float[Array, "batch read dim"]:
        """Attend to the prefix and to all tokens.

        Args:
            x: the normalised tokens.
            prefix: keys and values in front of those of the tokens. They have no position and are
                neither projected nor normalised.
            read: attend from so many of the first tokens only; None: from all.
            tokens: how many rows of `x` are tokens; the rest is padding. None: all.
            rotary: how to rotate the queries and keys of each row of `x`; None: not at all.
            kernel: the way to compute attention.
        """
        if kernel == "plain":
            return self._heads_first(x[:, :tokens], prefix, read, rotary)
        key = self._place(self.project(x, 1), self.key_norm, rotary)
        value = self.project(x, 2)
        counted = x.shape[1] if tokens is None else tokens
        if prefix is not None:
            prefix = prefix.astype(x.dtype)
            key = jnp.concatenate([prefix[:, 0], key], axis=1)
            value = jnp.concatenate([prefix[:, -1], value], axis=1)
            counted += prefix.shape[2]
        query = self._place(self.project(x[:, :read], 0), self.query_norm, rotary)
        mixed = attend(query, key, value, kernel=kernel, tokens=counted)
        batch, wanted, _, _ = mixed.shape
        mixed = mixed.reshape(batch * wanted, -1)
        out = mixed @ self.out.reshape(-1, self.out.shape[-1]).astype(x.dtype)
        out = out + self.out_bias.astype(x.dtype)
        return out.reshape(batch, wanted, -1)

    def project(
        self, x: Float[Array, "batch tokens dim"], part: int
    ) -> Float[Array, "batch tokens heads head_dim"]:
        """Queries, keys or values (part 0, 1 or 2), as the dense array that cuDNN takes.

        A product for all three would have to be cut into copies. It is written as a linear layer on
        whole rows, since XLA fuses the bias of those into the product.
        """
        _, _, heads, head_dim = self.qkv.shape
        kernel = self.qkv[:, part].reshape(-1, heads * head_dim).astype(x.dtype)
        if self.qkv_bias is None:
            projected = rows(x) @ kernel
        else:
            bias = self.qkv_bias[part].reshape(-1).astype(x.dtype)
            projected = rows(x) @ kernel + bias
        return projected.reshape(*x.shape[:2], heads, head_dim)

    def _place(
        self,
        x: Float[Array, "batch tokens heads head_dim"],
        norm: LayerNorm | None,
        rotary: Rotary | None,
    ) -> Float[Array, "batch tokens heads head_dim"]:
        """Queries or keys, normalised and rotated where the model does so."""
        if norm is not None:
            x = norm(x)
        if rotary is not None:
            x = jnp.swapaxes(rotary(jnp.swapaxes(x, 1, 2)), 1, 2)
        return x

    def _heads_first(
        self,
        x: Float[Array, "batch tokens dim"],
        prefix: Prefix | None,
        read: int | None,
        rotary: Rotary | None,
    ) -> Float[Array, "batch read dim"]:
        """The same by plain products, in the layout that they need, which saves transposing."""
        query = self._project_heads_first(x[:, :read], slice(0, 1))[0]
        key, value = self._project_heads_first(x, slice(1, 3))
        if self.query_norm is not None and self.key_norm is not None:
            query = self.query_norm(query)
            key = self.key_norm(key)
        if rotary is not None:
            query = rotary(query)
            key = rotary(key)
        if prefix is not None:
            prefix = jnp.einsum("bclhk->cbhlk", prefix.astype(x.dtype))
            key = jnp.concatenate([prefix[0], key], axis=2)
            value = jnp.concatenate([prefix[-1], value], axis=2)
        mixed = _attend_plainly(query, key, value)
        out = jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(x.dtype))
        return out + self.out_bias.astype(x.dtype)

    def _project_heads_first(
        self, x: Float[Array, "batch tokens dim"], part: slice
    ) -> Float[Array, "part batch heads tokens head_dim"]:
        kernel = self.qkv[:, part].astype(x.dtype)
        if self.qkv_bias is None:
            return jnp.einsum("btd,dchk->cbhtk", x, kernel)
        bias = self.qkv_bias[part].astype(x.dtype)
        return jnp.einsum("btd,dchk->cbhtk", x, kernel) + bias[:, None, :, None]
