"""The shape of a Vision Transformer, and the sizes of the published checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from promptax.core.errors import UserError, unknown
from promptax.core.fields import check_fields

Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]
"""The MLP's activation: GELU in its tanh approximation, exact GELU, or `x * sigmoid(1.702 x)`."""
Pooling = Literal["token", "mean"]
"""The feature vector of an image: the class token after the final LayerNorm, or the mean of the
patch tokens, to which the final LayerNorm is then applied (MAE's `fc_norm`)."""


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

    def __post_init__(self):
        check_fields(self)
        if self.dim % self.heads:
            raise UserError(f"ViT width {self.dim} is not divisible by {self.heads} heads.")
        if self.image < self.patch:
            raise UserError(f"image size {self.image} is smaller than the patch {self.patch}.")

    @property
    def grid(self) -> int:
        """Patches along a side. Pixels beyond the last whole patch are dropped, as published."""
        return self.image // self.patch


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
