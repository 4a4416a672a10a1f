"""Prompts, and how a query selects them (L2P: Wang et al., CVPR 2022, section 4; DualPrompt:
Wang et al., ECCV 2022, section 3)."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.core.types import BatchSize

QueryKind = Literal["cls", "mean", "max", "mean_max"]
"""How the query of an image is made: the frozen ViT's class token, or pooled patch embeddings."""
MOST_TOKENS = 2**20
"""The most tokens in all prompts of a pool: more do not fit a device beside the backbone."""


class Selection(eqx.Module):
    """The prompts given to each example."""

    index: Int32[Array, "batch top_k"]
    """Ids in the pool, in the order in which the prompts are put in front of the tokens."""
    similarity: Float32[Array, "batch top_k"]
    """Cosine similarity of the query and the key of each selected prompt."""


class Vote(eqx.Module):
    """A majority vote: all examples of a group get the prompts that most of them selected.

    The published code does this for most data sets; there, a group was a device's share of the
    batch.
    """

    weight: Float[Array, " batch"]
    """Examples of weight 0 are padding, and their selections are not counted."""
    group: int = eqx.field(static=True)
    """Number of consecutive examples that vote together; it must divide the batch."""

    def __call__(self, index: Int[Array, "batch top_k"], pool: int) -> Int[Array, "batch top_k"]:
        """Find the most frequent ids of each group; ties go to the smaller id.

        Args:
            index: the ids that each example selected.
            pool: number of prompts in the pool.

        Returns:
            For each example, the `top_k` ids that its group selected most often.

        Raises:
            UserError: the group does not divide the batch.
        """
        batch, top_k = index.shape
        if batch % self.group:
            raise UserError(f"a vote group of {self.group} does not divide a batch of {batch}.")
        ballots = jax.nn.one_hot(index, pool).sum(1) * self.weight[:, None]
        counts = ballots.reshape(-1, self.group, pool).sum(1)
        winners = _top(counts, top_k)[:, None]
        return jnp.broadcast_to(winners, (len(counts), self.group, top_k)).reshape(batch, top_k)


class PromptPool(eqx.Module):
    """A pool of prompts, each with a key; a query selects the prompts with the most similar keys.

    A prompt holds, for each of `layers`, either tokens that are put in front of the sequence
    (prompt tuning) or keys and values that are put in front inside attention (prefix tuning).
    """

    prompt: (
        Float32[Array, "layers pool length dim"]
        | Float32[Array, "layers kv pool length heads head_dim"]
    )
    """Tokens, or prefixes with `kv` 2 (key, value) or 1 (one array serves as both)."""
    key: Float32[Array, "pool dim"] | None
    """Learned keys; if None, the key of a prompt is its mean over layers and positions."""
    layers: tuple[int, ...] = eqx.field(static=True)
    """The block of the ViT that each slice of `prompt` belongs to."""
    top_k: int = eqx.field(static=True)
    """Number of prompts that an example selects."""

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
        """Make a pool for prompt tuning; prompts and keys start uniform in [0, 0.01).

        Args:
            dim: width of a token.
            size: number of prompts.
            length: tokens of a prompt.
            top_k: prompts that an example selects.
            layers: the blocks at whose entry tokens are inserted.
            learned_keys: have keys of their own, rather than the mean of each prompt.
            key: for the random values.
        """
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
        """Make a pool for prefix tuning; prompts and keys start uniform in [0, 0.01).

        Args:
            heads: attention heads of the ViT.
            head_dim: width of a head.
            size: number of prompts.
            length: keys and values of a prompt.
            top_k: prompts that an example selects.
            layers: the blocks that are given prefixes.
            same_key_value: use one array as keys and as values.
            key: for the random values.
        """
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
        """Number of prompts in the pool."""
        return self.prompt.shape[2 if self.is_prefix else 1]

    def select(
        self,
        query: Float[Array, "batch dim"],
        *,
        vote: Vote | None = None,
        task: Int[Array, ""] | None = None,
    ) -> Selection:
        """Select prompts by cosine similarity of query and keys (L2P, eq. 3).

        Args:
            query: one query for each example.
            vote: let groups of examples agree on their prompts.
            task: in training, select the task's own slot of `top_k` prompts instead. For a task
                whose slot lies beyond the end of the pool, the query decides.
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
        """Look the selected prompts up.

        Returns:
            By block, the prompts one after another: tokens `[batch, top_k * length, dim]`, or
            prefixes `[batch, kv, top_k * length, heads, head_dim]`.
        """
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
        """Copy the slot of the task before to the slot of `task`, if the pool has both.

        Args:
            task: number of the task.
            prompts: copy the prompts.
            keys: copy the keys.
        """
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
    """A prefix that all tasks share: DualPrompt's G-prompt (section 3.2)."""

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
        """Make a prefix; it starts uniform in [0, 0.01).

        Args:
            heads: attention heads of the ViT.
            head_dim: width of a head.
            length: number of keys and values.
            layers: the blocks that are given the prefix.
            same_key_value: use one array as keys and as values.
            key: for the random values.
        """
        check_prompts(1, length, layers)
        kv = 1 if same_key_value else 2
        return cls(_uniform(key, (len(layers), kv, length, heads, head_dim)), layers)

    def gather(self, batch: BatchSize) -> dict[int, Float[Array, "batch kv length heads head_dim"]]:
        """Repeat the prefix for each example; the result is by block."""
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
    """Check the size of a pool.

    Args:
        size: number of prompts.
        length: tokens of a prompt.
        layers: the blocks that prompts belong to.

    Raises:
        UserError: there are no prompts or blocks for them, more prompts than fit a device, or a
            block is named twice.
    """
    if not layers:
        raise UserError("no block is given for prompts: name at least one, counted from 0.")
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
