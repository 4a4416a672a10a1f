"""A ViT with prompts and a head: the model of every prompt method."""

from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from promptax.core.errors import UserError
from promptax.core.types import BatchSize
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import PrefixPrompt, PromptPool, QueryKind, Selection, Vote
from promptax.nn.vit import Linear, Prefix, ViT

Readout = Literal["token", "prompt", "gap", "token+prompt"]
"""The input of the head: the class token, or the mean over the prompt positions (`prompt`), over
all positions (`gap`), or over the prompt positions and the class token (`token+prompt`). For a ViT
without a class token, `token` is its own feature vector (see `ViT.feature`)."""
PromptPlacement = Literal["front", "after_cls"]
"""Where prompt tokens are inserted: `[prompts, cls, patches]` without position embedding, or, as in
the first release of L2P, `[cls, prompts, patches]` with that of the class token, if it has one."""


class Output(eqx.Module):
    """The result of a forward pass."""

    logits: Float32[Array, "batch classes"]
    features: Float32[Array, "batch dim"]
    """The input of the head."""
    selection: Selection | None
    """The chosen prompts; None without a pool."""


def require_vit(backbone: AbstractBackbone) -> ViT:
    """Return the backbone if it is a ViT.

    Raises:
        UserError: the backbone has no tokens, so that prompts cannot be used with it.
    """
    if not isinstance(backbone, ViT):
        raise UserError(
            f"prompts need a ViT: a {type(backbone).__name__} has no tokens to put them in front "
            "of. Choose a ViT's weights, or a method without prompts."
        )
    return backbone


def check_blocks(vit: ViT, layers: tuple[int, ...]) -> None:
    """Raise `UserError` if a prompt belongs to a block that the ViT does not have."""
    if not set(layers) <= set(range(vit.config.depth)):
        raise UserError(
            f"prompts in blocks {layers}, but this ViT has blocks 0 to {vit.config.depth - 1}."
        )


def class_token(
    vit: ViT,
    images: Float[Array, "batch height width channel"],
    *,
    prefixes: Mapping[int, Prefix] | None = None,
    tokens: Float[Array, "batch length dim"] | None = None,
) -> Float32[Array, "batch dim"]:
    """Encode images together with prompts and return the class token.

    A ViT without a class token gives its own feature vector instead: see `ViT.feature`.

    Args:
        vit: the ViT.
        images: as the ViT takes them.
        prefixes: by block, keys and values put in front inside its attention (see `ViT.encode`).
        tokens: prompt tokens put in front of the sequence, without position embedding.

    Returns:
        The class token after the final LayerNorm, in float32.
    """
    inserts = {} if tokens is None else {0: tokens}
    first = 0 if tokens is None else tokens.shape[1]
    x = vit.tokens(vit.patches(images))
    if not vit.config.class_token:
        return vit.feature(x, prefixes=prefixes, inserts=inserts).astype(jnp.float32)
    x = vit.encode(x, prefixes=prefixes, inserts=inserts, read=first + 1)
    return x[:, first].astype(jnp.float32)


class PromptedViT(eqx.Module):
    """A ViT with a head, a prompt pool and a prefix that all tasks share; pool and prefix are
    optional.

    Raises:
        UserError: a prompt belongs to a block that the ViT does not have, or has another width, or
            the read-out needs prompt tokens and there are none.
    """

    backbone: ViT
    head: Linear
    pool: PromptPool | None = None
    shared: PrefixPrompt | None = None
    query_backbone: ViT | None = None
    """The ViT that computes queries; None: `backbone`, which must then stay frozen."""
    readout: Readout = eqx.field(static=True, default="token")
    query_kind: QueryKind = eqx.field(static=True, default="cls")
    position: PromptPlacement = eqx.field(static=True, default="front")

    def __check_init__(self):
        config = self.backbone.config
        for prompt in (self.pool, self.shared):
            if prompt is None:
                continue
            check_blocks(self.backbone, prompt.layers)
            shape = prompt.prompt.shape
            if shape[-1] != config.dim and shape[-2:] != (config.heads, config.dim // config.heads):
                raise UserError(
                    f"prompts of shape {shape} do not fit a ViT of width {config.dim} and "
                    f"{config.heads} heads."
                )
        if self.readout in ("prompt", "token+prompt") and not self._token_layers:
            raise UserError(
                f"the read-out '{self.readout}' needs prompt tokens, but there are none."
            )
        if self.position == "after_cls" and self._token_layers not in ((), (0,)):
            raise UserError("prompts after the class token can only enter at block 0.")
        if not config.class_token:
            if self.readout == "token+prompt":
                raise UserError(
                    "the read-out 'token+prompt' needs a class token, and this ViT has none: "
                    "choose 'prompt', or 'token' for the feature vector of the ViT itself."
                )
            if self.position == "after_cls":
                raise UserError(
                    "prompts after the class token need a class token, and this ViT has none: "
                    "put them in front."
                )

    @property
    def _token_layers(self) -> tuple[int, ...]:
        return () if self.pool is None or self.pool.is_prefix else self.pool.layers

    def query(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch dim"]:
        """Compute the queries that select prompts: without prompts, and without a gradient (L2P,
        section 4.1)."""
        vit = jax.lax.stop_gradient(
            self.backbone if self.query_backbone is None else self.query_backbone
        )
        if self.query_kind == "cls":
            return vit(images).astype(jnp.float32)
        patches = vit.patches(images).astype(jnp.float32)
        mean = patches.mean(1)
        highest = patches.max(1)
        return {"mean": mean, "max": highest, "mean_max": highest + 2 * mean}[self.query_kind]

    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        query: Float[Array, "batch query"],
        *,
        vote: Vote | None = None,
        task: Int[Array, ""] | None = None,
    ) -> Output:
        """Compute the logits of all classes.

        Args:
            images: as the backbone takes them.
            query: `self.query(images)`, an argument of its own because it can be computed once for
                all epochs and evaluations.
            vote: lets groups of examples select together; see `PromptPool.select`.
            task: select the prompts of this task; see `PromptPool.select`.
        """
        selection = None if self.pool is None else self.pool.select(query, vote=vote, task=task)
        features = self._features(images, selection)
        return Output(self.head(features), features, selection)

    def _features(
        self, images: Float[Array, "batch height width channel"], selection: Selection | None
    ) -> Float32[Array, "batch dim"]:
        x = self.backbone.tokens(self.backbone.patches(images))
        chosen = self.pool.gather(selection.index) if self.pool and selection else {}
        tokens = chosen if self._token_layers else {}
        prefixes = {} if self._token_layers else chosen
        if self.readout == "token" and not self.backbone.config.class_token:
            prefixes = self._with_shared(prefixes, images.shape[0])
            pooled = self.backbone.feature(x, prefixes=prefixes, inserts=tokens)
            return pooled.astype(jnp.float32)
        length = sum(value.shape[1] for value in tokens.values())
        first, last = self._span(length)
        if tokens and self.position == "after_cls":
            prompts = tokens.pop(0)
            if self.backbone.config.positions == "class_and_patches":
                assert self.backbone.position is not None
                prompts = prompts + self.backbone.position[0]
            prompts = prompts.astype(x.dtype)
            x = jnp.concatenate([x[:, :1], prompts, x[:, 1:]], axis=1)
        prefixes = self._with_shared(prefixes, images.shape[0])
        x = self.backbone.encode(x, prefixes=prefixes, inserts=tokens, read=last)
        return x[:, first:last].astype(jnp.float32).mean(1)

    def _span(self, length: int) -> tuple[int, int | None]:
        """First and last position that the read-out averages (`None`: to the end), for so many
        prompt tokens in front of the class token or behind it."""
        cls = length if self.position == "front" else 0
        prompt = 0 if self.position == "front" else 1
        return {
            "token": (cls, cls + 1),
            "prompt": (prompt, prompt + length),
            "token+prompt": (0, length + 1),
            "gap": (0, None),
        }[self.readout]

    def _with_shared(self, expert: dict[int, Array], batch: BatchSize) -> dict[int, Array]:
        shared = {} if self.shared is None else self.shared.gather(batch)
        both = {block: _join(shared[block], expert[block]) for block in shared if block in expert}
        return {**shared, **expert, **both}


def _join(
    general: Float[Array, "batch kv1 length1 heads head_dim"],
    expert: Float[Array, "batch kv2 length2 heads head_dim"],
) -> Float[Array, "batch 2 length1+length2 heads head_dim"]:
    """Put both in front of a block that has a general and an expert prefix, the general first."""
    pair = lambda x: jnp.broadcast_to(x, (x.shape[0], 2, *x.shape[2:]))
    return jnp.concatenate([pair(general), pair(expert)], axis=2)
