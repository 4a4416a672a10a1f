"""Facts about a checkpoint that the names and shapes of its arrays do not show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.settings import STATISTICS, Interpolation, Normalisation
from promptax.nn.vit import Activation, Pooling
from promptax.nn.weights.position import Resize

Family = Literal[
    "vit", "deit", "mae", "dino", "ibot", "mocov3", "clip", "deit3", "dinov2", "dinov3", "siglip"
]
"""The pre-training recipe; `vit` is supervised training as Google published it."""

_ROUNDING = 1e-3
"""Published means and deviations of pixels are rounded to three digits or more."""


@dataclass(frozen=True)
class Metadata:
    """Facts about a checkpoint that its arrays do not show.

    One that is not known (None) has the default of its family, or else that of `ViTConfig`.
    """

    family: Family | None = None
    """The pre-training recipe; it gives the defaults of all that follows."""
    activation: Activation | None = None
    """Activation of the MLP: `gelu_tanh` in Google's files, `silu` where the MLP has a gate, else
    `gelu`. A CLIP has `quick_gelu` or `gelu`, which you have to say if no config does."""
    norm_eps: float | None = None
    """Epsilon of LayerNorm: 1e-5 in CLIP and DINOv3, 1e-12 with Hugging Face's names, else 1e-6."""
    pooling: Pooling | None = None
    """Read-out of the features: `mean` if the file has an `fc_norm`, `attention` if it has a layer
    for that, else `token`."""
    normalisation: Normalisation | None = None
    """Normalisation of the images in pre-training."""
    heads: int | None = None
    """Attention heads, if neither the shapes nor a published width determine them."""
    image: int | None = None
    """Side of the images in pre-training, in pixels, where there is no learned position embedding
    that shows it."""
    rotary_period: float | None = None
    """The longest period of rotary positions: 100 in DINOv3."""
    resize: Resize | None = None
    """How to resize the position embedding for another image size: as the owners of the family
    do."""
    crop: float | None = None
    """Side of the images of pre-training, as a share of the side that they are cut from: 0.875 for
    224 of 256 pixels."""
    interpolation: Interpolation | None = None
    """How images were resized in pre-training."""
    licence: str | None = None
    """Licence of the weights."""
    source: str | None = None
    """Where the weights come from."""

    def __post_init__(self):
        check_fields(self)
        if self.norm_eps is not None and not 0 < self.norm_eps < math.inf:
            raise UserError(f"norm eps is {self.norm_eps}; expected a finite number above 0.")
        if self.heads is not None and self.heads < 1:
            raise UserError(f"heads is {self.heads}; expected at least 1.")
        if self.image is not None and self.image < 1:
            raise UserError(f"image is {self.image}; expected at least 1 pixel.")
        if self.rotary_period is not None and not 0 < self.rotary_period < math.inf:
            raise UserError(
                f"rotary period is {self.rotary_period}; expected a finite number above 0."
            )
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UserError(f"crop is {self.crop}; expected a share above 0 and at most 1.")

    def known(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def filled_from(self, other: "Metadata") -> "Metadata":
        """This metadata, with every unknown field taken from `other`."""
        return dataclasses.replace(other, **self.known())

    def filled_from_family(self) -> "Metadata":
        """This metadata, with every unknown field set to the default of the family, if any."""
        return self.filled_from(FAMILIES[self.family]) if self.family else self


UNKNOWN = Metadata()
FAMILIES: Mapping[Family, Metadata] = {
    "vit": Metadata(normalisation="symmetric", resize="bilinear"),
    "deit": Metadata(normalisation="imagenet", resize="bicubic"),
    "mae": Metadata(normalisation="imagenet", resize="bicubic"),
    "dino": Metadata(normalisation="imagenet", resize="bicubic"),
    "ibot": Metadata(normalisation="imagenet", resize="bicubic"),
    "mocov3": Metadata(normalisation="imagenet", resize="bicubic"),
    # Neither the names nor the shapes of a CLIP show which activation it was trained with.
    "clip": Metadata(norm_eps=1e-5, normalisation="clip", resize="bicubic_antialias"),
    "deit3": Metadata(normalisation="imagenet", resize="bicubic_antialias"),
    "dinov2": Metadata(norm_eps=1e-6, normalisation="imagenet", resize="bicubic_antialias"),
    "dinov3": Metadata(norm_eps=1e-5, normalisation="imagenet", image=256, rotary_period=100.0),
    "siglip": Metadata(norm_eps=1e-6, normalisation="symmetric", resize="bicubic_antialias"),
}
"""The defaults of each family."""


def normalisation_of(mean: Sequence[float], std: Sequence[float]) -> Normalisation | None:
    """The name of a normalisation by its mean and standard deviation per channel, or None."""
    for name, (known_mean, known_std) in STATISTICS.items():
        # Hubs also hold models of one channel, so the lengths may differ.
        pairs = [*zip(mean, known_mean, strict=False), *zip(std, known_std, strict=False)]
        if all(math.isclose(given, known, abs_tol=_ROUNDING) for given, known in pairs):
            return name
    return None
