"""The shape of a Vision Transformer, and the sizes of the published checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from promptax.core.errors import UserError, unknown
from promptax.core.fields import check_fields

Activation = Literal["gelu_tanh", "gelu", "quick_gelu", "silu"]
"""The MLP's activation: GELU in its tanh approximation, exact GELU, `x * sigmoid(1.702 x)`, or
`x * sigmoid(x)`, with which a gated MLP is a SwiGLU."""
Pooling = Literal["token", "mean", "mean_after_norm", "attention"]
"""How the feature vector of an image is made: the class token after the final LayerNorm (`token`);
the mean of the patch tokens, to which the final LayerNorm is then applied (`mean`, the `fc_norm` of
MAE); the mean of the patch tokens after the final LayerNorm (`mean_after_norm`); or one more layer,
in which a learned query attends to the patch tokens (`attention`, SigLIP)."""
Positions = Literal["class_and_patches", "patches", "rotary"]
"""Where positions enter: learned vectors that are added to the class token and the patches; learned
vectors for the patches only (timm's `no_embed_class`); or rotations of the queries and keys of the
patches in every block (DINOv3). Register tokens have no position."""


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT, and everything else in which published models differ."""

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
    """Activation between the two layers of the MLP."""
    norm_eps: float = 1e-6
    """Added to the variance by every LayerNorm."""
    pre_norm: bool = False
    """A LayerNorm in front of the first block (CLIP)."""
    pooling: Pooling = "token"
    """How the feature vector of an image is made of its tokens."""
    class_token: bool = True
    """Have a class token in front of the patches."""
    registers: int = 0
    """Register tokens, between the class token and the patches (DINOv2 with registers, DINOv3)."""
    positions: Positions = "class_and_patches"
    """How the tokens get their positions."""
    rotary_period: float = 100.0
    """The longest period of rotary positions, where the sides of an image go from -1 to 1."""
    layer_scale: bool = False
    """Multiply the output of attention and of the MLP by a learned vector (DINOv2, DeiT 3)."""
    gated_mlp: bool = False
    """Multiply the hidden layer of the MLP by an activated second one (SwiGLU)."""
    qkv_bias: bool = True
    """Have biases in the projections to queries, keys and values."""
    qk_norm: bool = False
    """Apply a LayerNorm to the queries and keys of each head."""

    def __post_init__(self):
        check_fields(self)
        if self.dim % self.heads:
            raise UserError(f"ViT width {self.dim} is not divisible by {self.heads} heads.")
        if self.image < self.patch:
            raise UserError(f"image size {self.image} is smaller than the patch {self.patch}.")
        if not self.class_token:
            if self.pooling == "token":
                raise UserError(
                    "a ViT without a class token cannot be read out at it: choose another pooling."
                )
            if self.positions == "class_and_patches":
                raise UserError(
                    "a ViT without a class token has none to give a position to: choose "
                    "positions 'patches' or 'rotary'."
                )
        if self.positions == "rotary" and (self.dim // self.heads) % 4:
            raise UserError(
                f"rotary positions need heads whose width is a multiple of 4, but these are "
                f"{self.dim // self.heads} wide."
            )

    @property
    def grid(self) -> int:
        """Patches along a side. Pixels beyond the last whole patch are dropped, as published."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Number of patches; in a sequence they come last."""
        return self.grid**2

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens in front of the patches: the class token and the registers."""
        return self.class_token + self.registers

    @property
    def learned_positions(self) -> int:
        """Number of learned position vectors."""
        return {
            "class_and_patches": 1 + self.patches,
            "patches": self.patches,
            "rotary": 0,
        }[self.positions]


SIZES: Mapping[str, ViTConfig] = {
    "vit-s/16": ViTConfig(patch=16, dim=384, depth=12, heads=6, mlp=1536),
    "vit-b/16": ViTConfig(patch=16, dim=768, depth=12, heads=12, mlp=3072),
    "vit-b/32": ViTConfig(patch=32, dim=768, depth=12, heads=12, mlp=3072),
    "vit-b/16-2x2": ViTConfig(patch=2, dim=768, depth=12, heads=12, mlp=3072, image=32),
    "vit-b/16-4x4": ViTConfig(patch=4, dim=768, depth=12, heads=12, mlp=3072, image=32),
    "vit-l/16": ViTConfig(patch=16, dim=1024, depth=24, heads=16, mlp=4096),
    "vit-l/32": ViTConfig(patch=32, dim=1024, depth=24, heads=16, mlp=4096),
    "vit-h/14": ViTConfig(patch=14, dim=1280, depth=32, heads=16, mlp=5120),
}
"""The sizes of the published checkpoints."""


def vit_config(size: str, image: int | None = None) -> ViTConfig:
    """The shape of a published size.

    Args:
        size: a name in `SIZES`, such as `vit-b/16`.
        image: side of the square input images in pixels; that of the published model, if None.

    Raises:
        UserError: there is no such size.
    """
    if size not in SIZES:
        raise unknown("ViT size", size, SIZES)
    config = SIZES[size]
    return config if image is None else replace(config, image=image)
