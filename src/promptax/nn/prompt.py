"""Prompts and how a query chooses them (L2P: Wang et al., CVPR 2022, section 4; DualPrompt:
Wang et al., ECCV 2022, section 3)."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray

from promptax.core.errors import UserError

QueryKind = Literal["cls", "mean", "max", "mean_max"]
"""What an image is looked up by: the frozen ViT's class token, or pooled patch embeddings."""
MOST_TOKENS = 2**20
"""Of all prompts of a pool: more don't fit a device beside the backbone."""


class Selection(eqx.Module):
    """The prompts given to each example."""

    index: Int32[Array, "batch top_k"]
    """Ids in the pool, in the order in which the prompts are put in front."""
    similarity: Float32[Array, "batch top_k"]
    """Cosine of the query and the key of each."""


class Vote(eqx.Module):
    """Examples that choose together: each group's most frequent ids serve all of it.

    Published for most presets, where a group was a device's share of the batch.
    """

    weight: Float[Array, " batch"]
    """An example of weight 0 (padding) has no say."""
    group: int = eqx.field(static=True)
    """Consecutive examples that vote together; must divide the batch."""

    def __call__(self, index: Int[Array, "batch top_k"], pool: int) -> Int[Array, "batch top_k"]:
        """The `top_k` most frequent ids of each example's group, ties to the smaller id."""
        batch, top_k = index.shape
        if batch % self.group:
            raise UserError(f"a vote group of {self.group} does not divide a batch of {batch}.")
        ballots = jax.nn.one_hot(index, pool).sum(1) * self.weight[:, None]
        counts = ballots.reshape(-1, self.group, pool).sum(1)
        winners = _top(counts, top_k)[:, None]
        return jnp.broadcast_to(winners, (len(counts), self.group, top_k)).reshape(batch, top_k)


class PromptPool(eqx.Module):
    """`pool` prompts, each with a key; a query is given those with the nearest keys.

    A prompt is either tokens to put in front (prompt tuning) or keys and values to put in
    front inside attention (prefix tuning), for each of `layers`.
    """

    prompt: (
        Float32[Array, "layers pool length dim"]
        | Float32[Array, "layers kv pool length heads head_dim"]
    )
    """Tokens, or prefixes with `kv` 2 (key, value) or 1 (one array serves as both)."""
    key: Float32[Array, "pool dim"] | None
    """Learned keys; None: the key of a prompt is its mean over layers and positions."""
    layers: tuple[int, ...] = eqx.field(static=True)
    """The block that each slice of `prompt` belongs to."""
    top_k: int = eqx.field(static=True)
    """Prompts given to an example."""

    def __check_init__(self):
        if self.prompt.shape[0] != len(self.layers):
            raise UserError(f"{self.prompt.shape[0]} prompt slices for blocks {self.layers}.")
        if not 1 <= self.top_k <= self.size:
            raise UserError(
                f"top-k {self.top_k} does not fit a pool of {self.size} prompts: "
                f"choose 1 <= top-k <= {self.size}."
            )
        if self.key is None and self.is_prefix:
            raise UserError("prefixes need learned keys: the mean of a prefix is no query.")

    @classmethod
    def tokens(
        cls,
        dim: int,
        *,
        size: int,
        length: int,
        top_k: int,
        layers: tuple[int, ...] = (0,),
        learned_keys: bool = True,
        key: PRNGKeyArray,
    ) -> "PromptPool":
        """A pool for prompt tuning; prompts and keys start uniform in [0, 0.01)."""
        check_prompts(size, length, layers)
        prompt, keys = jr.split(key)
        prompt = _uniform(prompt, (len(layers), size, length, dim))
        return cls(prompt, _uniform(keys, (size, dim)) if learned_keys else None, layers, top_k)

    @classmethod
    def prefixes(
        cls,
        heads: int,
        head_dim: int,
        *,
        size: int,
        length: int,
        top_k: int,
        layers: tuple[int, ...],
        same_key_value: bool = False,
        key: PRNGKeyArray,
    ) -> "PromptPool":
        """A pool for prefix tuning; prompts and keys start uniform in [0, 0.01)."""
        check_prompts(size, length, layers)
        prompt, keys = jr.split(key)
        kv = 1 if same_key_value else 2
        prompt = _uniform(prompt, (len(layers), kv, size, length, heads, head_dim))
        return cls(prompt, _uniform(keys, (size, heads * head_dim)), layers, top_k)

    @property
    def is_prefix(self) -> bool:
        """Whether prompts are keys and values rather than tokens."""
        return self.prompt.ndim == 6

    @property
    def size(self) -> int:
        """Number of prompts."""
        return self.prompt.shape[2 if self.is_prefix else 1]

    def select(
        self,
        query: Float[Array, "batch dim"],
        *,
        vote: Vote | None = None,
        task: Int[Array, ""] | None = None,
    ) -> Selection:
        """Choose prompts by cosine similarity of query and keys (L2P, eq. 3).

        **Arguments:**

        - `vote`: let groups of examples agree on their prompts.
        - `task`: give the task its own slot of `top_k` prompts instead, in training; where
            the slot passes the end of the pool the query decides.
        """
        keys = l2_normalize(self.prompt.mean((0, 2)) if self.key is None else self.key)
        cosine = l2_normalize(query.astype(jnp.float32)) @ keys.T
        index = _top(cosine, self.top_k)
        if vote is not None:
            index = vote(index, self.size)
        if task is not None:
            slot = task * self.top_k + jnp.arange(self.top_k)
            index = jnp.where(slot[-1] < self.size, slot, index)
        return Selection(index, jnp.take_along_axis(cosine, index, axis=1))

    def gather(self, index: Int[Array, "batch top_k"]) -> dict[int, Float[Array, "batch ..."]]:
        """By block, the chosen prompts one after another: tokens `[batch, top_k * length,
        dim]` or prefixes `[batch, kv, top_k * length, heads, head_dim]`."""
        if self.is_prefix:
            chosen = jnp.moveaxis(self.prompt[:, :, index], 2, 1)
            shape = (*chosen.shape[:3], -1, *chosen.shape[5:])
        else:
            chosen = self.prompt[:, index]
            shape = (*chosen.shape[:2], -1, chosen.shape[-1])
        return dict(zip(self.layers, chosen.reshape(shape), strict=True))

    def transfer(
        self, task: Int[Array, ""], *, prompts: bool = True, keys: bool = False
    ) -> "PromptPool":
        """Start the slot of `task` from the slot of the task before, if both are inside."""
        return PromptPool(
            self._shift(self.prompt, task, 2 if self.is_prefix else 1) if prompts else self.prompt,
            self._shift(self.key, task, 0) if keys and self.key is not None else self.key,
            self.layers,
            self.top_k,
        )

    def _shift(self, values: Array, task: Int[Array, ""], axis: int) -> Array:
        start = task * self.top_k
        inside = (task > 0) & (start + self.top_k <= self.size)
        before = jax.lax.dynamic_slice_in_dim(values, start - self.top_k, self.top_k, axis)
        moved = jax.lax.dynamic_update_slice_in_dim(values, before, start, axis)
        return jnp.where(inside, moved, values)


class PrefixPrompt(eqx.Module):
    """One prefix shared by all tasks, DualPrompt's G-prompt (section 3.2)."""

    prompt: Float32[Array, "layers kv length heads head_dim"]
    layers: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        heads: int,
        head_dim: int,
        *,
        length: int,
        layers: tuple[int, ...],
        same_key_value: bool = False,
        key: PRNGKeyArray,
    ) -> "PrefixPrompt":
        """Start uniform in [0, 0.01)."""
        check_prompts(1, length, layers)
        kv = 1 if same_key_value else 2
        return cls(_uniform(key, (len(layers), kv, length, heads, head_dim)), layers)

    def gather(self, batch: int) -> dict[int, Float[Array, "batch kv length heads head_dim"]]:
        """By block, the prefix of every example."""
        shared = jnp.broadcast_to(
            self.prompt[:, None], (len(self.layers), batch, *self.prompt.shape[1:])
        )
        return dict(zip(self.layers, shared, strict=True))


def l2_normalize(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Scale the last axis to length 1, with the published guard against zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def _top(scores: Float[Array, "rows pool"], count: int) -> Int32[Array, "rows count"]:
    """The ids of the largest scores of each row, of equal ones the smaller first."""
    # Not `top_k`: XLA would gather the rows of all devices for it.
    return jnp.argsort(scores, axis=1, descending=True, stable=True)[:, :count]


def check_prompts(size: int, length: int, layers: tuple[int, ...]) -> None:
    """Raise `UserError` for prompts of which there are none, or more than fit a device."""
    if size < 1 or length < 1:
        raise UserError(f"{size} prompts of length {length}: expected at least 1 of each.")
    if size * length * len(layers) > MOST_TOKENS:
        raise UserError(
            f"a pool of {size} prompts of length {length}: expected at most {MOST_TOKENS} tokens."
        )
    if len(set(layers)) < len(layers):
        raise UserError(f"blocks {layers} for prompts name one twice.")


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    # Drawn flat, for the same values: XLA takes seconds to compile a draw of six axes.
    return jr.uniform(key, (math.prod(shape),), maxval=0.01).reshape(shape)
