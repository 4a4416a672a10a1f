"""SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823): a scale and a shift behind each layer.

The output y of a linear layer or LayerNorm becomes `scale * y + shift`, feature by feature. This is
again a linear layer or LayerNorm, so the factors are merged into its parameters before each forward
pass, which then costs no more than without them, and `ViT` needs no code for it.
"""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float32, PRNGKeyArray

from promptax.nn.layers import LayerNorm, Linear
from promptax.nn.vit import ViT

DEVIATION = 0.02
"""Standard deviation of scales around 1 and of shifts around 0 at first."""


class ScaleShift(eqx.Module):
    """A scale and a shift for each output of a layer; for a layer of every block, those of all
    blocks are stacked."""

    scale: Float32[Array, "..."]
    shift: Float32[Array, "..."]

    def __init__(self, shape: tuple[int, ...], *, key: PRNGKeyArray):
        """Draw both as the authors do, close to the identity.

        (`init_ssf_scale_shift` in RanPAC's `petl/vision_transformer_ssf.py` at 012927f.)
        """
        scale_key, shift_key = jr.split(key)
        self.scale = 1 + DEVIATION * jr.normal(scale_key, shape)
        self.shift = DEVIATION * jr.normal(shift_key, shape)

    def norm(self, norm: LayerNorm) -> LayerNorm:
        """The LayerNorm with scale and shift behind it."""
        values = (self.scale * norm.scale, self.scale * norm.bias + self.shift)
        return eqx.tree_at(lambda norm: (norm.scale, norm.bias), norm, values)

    def linear(self, linear: Linear) -> Linear:
        """The linear layer, of one block or of all, with scale and shift behind it."""
        kernel = self.scale[..., None, :] * linear.kernel
        bias = self.scale * linear.bias + self.shift
        return eqx.tree_at(lambda layer: (layer.kernel, layer.bias), linear, (kernel, bias))


class ScaleShiftTuning(eqx.Module):
    """Scales and shifts of all layers of a ViT: of the patch embedding, and in each block of both
    LayerNorms, the projections to and from attention, and both layers of the MLP; and of the final
    LayerNorm."""

    patch: ScaleShift
    attention_norm: ScaleShift
    qkv: ScaleShift
    attention_out: ScaleShift
    mlp_norm: ScaleShift
    hidden: ScaleShift
    out: ScaleShift
    final_norm: ScaleShift

    def __init__(self, vit: ViT, *, key: PRNGKeyArray):
        """Scales and shifts that hardly change anything yet, in the sizes of a ViT."""
        depth = vit.config.depth
        tokens = (depth, vit.dim)
        shapes = [
            (vit.dim,),
            tokens,
            (depth, *vit.blocks.attention.qkv.shape[2:]),
            tokens,
            tokens,
            vit.blocks.mlp.hidden.bias.shape,
            tokens,
            (vit.dim,),
        ]
        keys = jr.split(key, len(shapes))
        made = [ScaleShift(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]
        (
            self.patch,
            self.attention_norm,
            self.qkv,
            self.attention_out,
            self.mlp_norm,
            self.hidden,
            self.out,
            self.final_norm,
        ) = made

    def __call__(self, vit: ViT) -> ViT:
        """The ViT with scales and shifts merged into its parameters."""
        blocks = vit.blocks
        attention = blocks.attention
        qkv = self.qkv.scale[:, None] * attention.qkv
        qkv_bias = self.qkv.shift
        if attention.qkv_bias is not None:
            qkv_bias = qkv_bias + self.qkv.scale * attention.qkv_bias
        out = self.attention_out.scale[:, None, None] * attention.out
        out_bias = self.attention_out.scale * attention.out_bias + self.attention_out.shift
        attention = eqx.tree_at(
            lambda layer: (layer.qkv, layer.qkv_bias, layer.out, layer.out_bias),
            attention,
            (qkv, qkv_bias, out, out_bias),
            is_leaf=lambda leaf: leaf is None,
        )
        layers = (
            self.patch.scale * vit.patch_kernel,
            self.patch.scale * vit.patch_bias + self.patch.shift,
            self.attention_norm.norm(blocks.attention_norm),
            attention,
            self.mlp_norm.norm(blocks.mlp_norm),
            self.hidden.linear(blocks.mlp.hidden),
            self.out.linear(blocks.mlp.out),
            self.final_norm.norm(vit.norm),
        )
        return eqx.tree_at(_layers, vit, layers)


def _layers(vit: ViT) -> tuple:
    """The parts of a ViT that scales and shifts change, in their order."""
    blocks = vit.blocks
    return (
        vit.patch_kernel,
        vit.patch_bias,
        blocks.attention_norm,
        blocks.attention,
        blocks.mlp_norm,
        blocks.mlp.hidden,
        blocks.mlp.out,
        vit.norm,
    )
