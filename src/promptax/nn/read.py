"""Weights of any backbone, told by the names of their leaves."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from promptax.core.files import npz_names
from promptax.nn.resnet_weights import ResNetWeights, is_resnet, read_resnet
from promptax.nn.weights import About, Weights, read_weights
from promptax.nn.weights.about import UNKNOWN


def read_backbone(path: str | Path, hints: About = UNKNOWN) -> Weights | ResNetWeights:
    """Read the weights of a ViT or of a ResNet; `build` makes the backbone.

    `hints` are what you know of a ViT's weights (see `read_weights`).

    Raises `UserError` as `read_weights` and `read_resnet` do.
    """
    return read_resnet(path) if is_resnet(_names(Path(path))) else read_weights(path, hints)


def _names(path: Path) -> Sequence[str]:
    """None where the file cannot be read: whoever reads it next says why."""
    try:
        if not path.is_file():
            return []  # opening a pipe may never end
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as tensors:
                return list(tensors.keys())
        return npz_names(path)
    except Exception:
        return []
