"""Facts about a checkpoint that the names and shapes of its arrays do not show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.settings import STATISTICS, Normalisation
from promptax.nn.vit import Activation, Pooling

Family = Literal["vit", "deit", "mae", "dino", "ibot", "clip"]
"""The pre-training recipe; `vit` is supervised training as Google published it."""

_ROUNDING = 1e-3
"""Published means and deviations of pixels are rounded to three digits or more."""


@dataclass(frozen=True)
class Metadata:
    """Facts about a checkpoint that its arrays do not show; None stands for "not known".

    A fact that remains unknown gets the default of `ViTConfig`.
    """

    family: Family | None = None
    """The pre-training recipe; it gives the defaults of all that follows."""
    activation: Activation | None = None
    """Activation of the MLP: `gelu_tanh` in Google's files, `quick_gelu` in CLIP, else `gelu`."""
    norm_eps: float | None = None
    """Epsilon of LayerNorm: 1e-5 in CLIP, 1e-12 with Hugging Face's names, else 1e-6."""
    pooling: Pooling | None = None
    """Read-out of the features: `mean` if the file has an `fc_norm`, else `token`."""
    normalisation: Normalisation | None = None
    """Normalisation of the images in pre-training."""
    heads: int | None = None
    """Attention heads, if neither the shapes nor a published width determine them."""
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
    "vit": Metadata(normalisation="symmetric"),
    "deit": Metadata(normalisation="imagenet"),
    "mae": Metadata(normalisation="imagenet"),
    "dino": Metadata(normalisation="imagenet"),
    "ibot": Metadata(normalisation="imagenet"),
    "clip": Metadata(activation="quick_gelu", norm_eps=1e-5, normalisation="clip"),
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
