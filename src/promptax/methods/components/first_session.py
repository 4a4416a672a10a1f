"""Adaptation of a backbone to the first task, after which it is frozen (RanPAC's phase 1).

Adapters, scales and shifts, or prompts are trained with a head of cosines,

    logits = sigma * cos(f(x), w_c)

by cross-entropy among the classes of the first task. The head has no use afterwards.
"""

import math
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.methods.base import Logits
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import l2_normalize
from promptax.nn.tuned import TunedViT


class FirstSession(eqx.Module):
    """Training of extra parameters on the first task."""

    phase1: Literal["none", "adapter", "ssf", "vpt"] = "none"
    """Parameters that are trained on the first task and frozen afterwards. adapter: AdaptFormer, a
    narrow layer beside each MLP; ssf: scales and shifts behind all layers; vpt: prompt tokens for
    each block; none: nothing, and no step is taken."""
    adapter_width: int = 64
    """Width of the adapters' bottleneck, with `adapter`."""
    prompt_tokens: int = 5
    """Number of prompt tokens for each block, with `vpt`."""

    @property
    def on(self) -> bool:
        """Whether anything is trained."""
        return self.phase1 != "none"

    def tuned(self, backbone: AbstractBackbone, *, key: PRNGKeyArray) -> AbstractBackbone:
        """The backbone, with what is to be trained.

        Raises:
            UserError: The backbone is not a ViT, or a width does not fit it.
        """
        if self.phase1 == "none":
            return backbone
        width = self.prompt_tokens if self.phase1 == "vpt" else self.adapter_width
        return TunedViT.init(backbone, self.phase1, width, key=key)


class CosineHead(eqx.Module):
    """Cosines of features with a weight vector for each class, times a factor that is trained."""

    weight: Float32[Array, "classes dim"]
    factor: Float32[Array, ""]

    def __init__(self, dim: int, num_classes: int, *, key: PRNGKeyArray):
        """Weights uniform within `1 / sqrt(dim)` and a factor of 1, as in RanPAC's code.

        (`CosineLinear` in `inc_net.py` at 012927f.)
        """
        limit = 1 / math.sqrt(dim)
        self.weight = jr.uniform(key, (num_classes, dim), minval=-limit, maxval=limit)
        self.factor = jnp.ones(())

    def __call__(self, features: Float[Array, "batch dim"]) -> Logits:
        """The logits of all classes."""
        features = l2_normalize(features.astype(jnp.float32))
        return self.factor * features @ l2_normalize(self.weight).T
