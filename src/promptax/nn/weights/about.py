"""What the names and shapes of a checkpoint's leaves don't tell."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.core.settings import STATISTICS, Normalisation
from promptax.nn.vit import Activation, Pooling

Family = Literal["vit", "deit", "mae", "dino", "ibot", "clip"]
"""How a model was pre-trained."""


@dataclass(frozen=True)
class About:
    """What is known of a checkpoint beside its leaves; None: not known, or the usual."""

    family: Family | None = None
    """How it was pre-trained; gives the defaults of what follows."""
    activation: Activation | None = None
    """Of the MLP; `gelu_tanh` for Google's files, `quick_gelu` for CLIP, `gelu` for others."""
    norm_eps: float | None = None
    """Epsilon of LayerNorm; 1e-5 for CLIP, 1e-12 with Hugging Face's names, 1e-6 for others."""
    pooling: Pooling | None = None
    """What stands for an image; `mean` where there is an `fc_norm`, `token` for others."""
    normalisation: Normalisation | None = None
    """How images were scaled in pre-training."""
    heads: int | None = None
    """Attention heads, where neither shapes nor the usual width tell."""
    licence: str | None = None
    """Of the weights."""
    source: str | None = None
    """Where the weights are from."""

    def __post_init__(self):
        if self.norm_eps is not None and not 0 < self.norm_eps < math.inf:
            raise UserError(f"norm eps is {self.norm_eps}; expected a finite number above 0.")
        if self.heads is not None and self.heads < 1:
            raise UserError(f"heads is {self.heads}; expected at least 1.")

    def over(self, other: "About") -> "About":
        """What this one knows, and the rest from the other."""
        return dataclasses.replace(other, **self.known())

    def known(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def with_family(self) -> "About":
        """The family's defaults filled in."""
        return self.over(FAMILIES[self.family]) if self.family else self


UNKNOWN = About()
FAMILIES: Mapping[Family, About] = {
    "vit": About(normalisation="symmetric"),
    "deit": About(normalisation="imagenet"),
    "mae": About(normalisation="imagenet"),
    "dino": About(normalisation="imagenet"),
    "ibot": About(normalisation="imagenet"),
    "clip": About(activation="quick_gelu", norm_eps=1e-5, normalisation="clip"),
}
"""What is usual for a family. `vit` is supervised, as Google published it."""


def normalisation_of(mean: Sequence[float], std: Sequence[float]) -> Normalisation | None:
    """The name of a mean and a standard deviation; None for those without one."""
    for name, known in STATISTICS.items():
        pairs = [*zip(mean, known[0], strict=False), *zip(std, known[1], strict=False)]
        if all(math.isclose(ours, theirs, abs_tol=1e-3) for ours, theirs in pairs):
            return name
    return None
