"""Attention pooling: the read-out of models without a class token (Zhai et al., 2022; SigLIP)."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.nn.attention import Attention, attend
from promptax.nn.layers import LayerNorm, Mlp
from promptax.nn.sizes import ViTConfig


class AttentionPool(eqx.Module):
    """One attention layer from a learned query to all tokens, and an MLP behind it."""

    probe: Float32[Array, " dim"]
    attention: Attention
    norm: LayerNorm
    mlp: Mlp

    def __init__(self, config: ViTConfig, *, key: PRNGKeyArray):
        """Random weights, for the tokens of a ViT of this shape."""
        probe_key, attention_key, mlp_key = jr.split(key, 3)
        self.probe = 0.02 * jr.normal(probe_key, (config.dim,))
        self.attention = Attention(config.dim, config.heads, key=attention_key)
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.mlp = Mlp(config.dim, config.mlp, config.activation, key=mlp_key)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch dim"]:
        """Pool the tokens of each image.

        Args:
            x: the tokens after the final LayerNorm of the ViT.
        """
        layer = self.attention
        probe = jnp.broadcast_to(self.probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        mixed = attend(layer.project(probe, 0), layer.project(x, 1), layer.project(x, 2))
        pooled = jnp.einsum("bqhk,hkd->bqd", mixed, layer.out.astype(x.dtype))
        pooled = pooled[:, 0] + layer.out_bias.astype(x.dtype)
        return pooled + self.mlp(self.norm(pooled))
