"""A ViT of which few parameters are trained: adapters, scales and shifts, or deep prompts.

The ViT itself stays as it is. The three kinds are those that RanPAC trains on its first task.
"""

from typing import Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError
from promptax.nn.adapter import Adapter
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.scale_shift import ScaleShiftTuning
from promptax.nn.vit import ViT

TuningKind = Literal["adapter", "ssf", "vpt"]
"""adapter: AdaptFormer, a narrow layer beside each MLP; ssf: scales and shifts behind all layers;
vpt: deep visual prompt tuning, separate prompt tokens for each block."""


class DeepPrompt(eqx.Module):
    """Prompt tokens for each block, which replace those of the block before it (VPT-deep; Jia et
    al., ECCV 2022, arXiv 2203.12119)."""

    tokens: Float32[Array, "depth length dim"]

    def __call__(
        self, vit: ViT, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The features of images with the prompts in front of their tokens."""
        batch = len(images)
        shape = (batch, *self.tokens.shape[1:])
        inserts = {
            block: jnp.broadcast_to(tokens, shape) for block, tokens in enumerate(self.tokens)
        }
        x = vit.tokens(vit.patches(images))
        return vit.feature(x, inserts=inserts, replace=True)


class TunedViT(AbstractBackbone):
    """A ViT, and the parameters that are trained with it."""

    vit: ViT
    tuning: Adapter | ScaleShiftTuning | DeepPrompt

    @classmethod
    def init(
        cls, backbone: AbstractBackbone, kind: TuningKind, width: int, *, key: PRNGKeyArray
    ) -> "TunedViT":
        """Add parameters that are to be trained.

        Args:
            backbone: The pre-trained backbone.
            kind: What is added to it.
            width: Width of the adapters' bottleneck, or number of prompt tokens of each block;
                `ssf` ignores it.
            key: For the initial values; prompts are zero at first, as in RanPAC's code
                (`petl/vpt.py` at 012927f).

        Raises:
            UserError: The backbone is not a ViT, the kind is unknown, or the width does not fit.
        """
        if not isinstance(backbone, ViT):
            raise UserError(
                f"'{kind}' needs a ViT, but the backbone is a {type(backbone).__name__}: choose a "
                "ViT's weights, or train without it."
            )
        depth = backbone.config.depth
        if kind == "adapter":
            return cls(backbone, Adapter.init(depth, backbone.dim, width, key=key))
        if kind == "ssf":
            return cls(backbone, ScaleShiftTuning(backbone, key=key))
        if kind == "vpt":
            if width < 1:
                raise UserError(f"prompts of {width} tokens; expected at least 1.")
            return cls(backbone, DeepPrompt(jnp.zeros((depth, width, backbone.dim))))
        expected = ", ".join(get_args(TuningKind))
        raise UserError(f"a ViT cannot be tuned by '{kind}'; expected one of {expected}.")

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.vit.dim

    @property
    def image(self) -> int:
        """Side of the square images that the ViT takes, in pixels."""
        return self.vit.image

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The features of the tuned ViT."""
        if isinstance(self.tuning, DeepPrompt):
            return self.tuning(self.vit, images)
        if isinstance(self.tuning, ScaleShiftTuning):
            return self.tuning(self.vit)(images)
        is_none = lambda leaf: leaf is None
        vit = eqx.tree_at(lambda vit: vit.blocks.adapter, self.vit, self.tuning, is_leaf=is_none)
        return vit(images)
