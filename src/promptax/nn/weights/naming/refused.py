"""Families that this library does not compute, by tensors that only they have."""

import re
from collections.abc import Iterable

from promptax.core.errors import UserError

_INSTEAD = "take a ViT, DeiT, MAE, DINO, DINOv2 or CLIP (`promptax weights list` shows them)"
_REFUSED = (
    (
        r"relative_position_bias|rel_pos_bias",
        "a BEiT, whose attention has biases by relative position",
    ),
    (
        r"\bblocks\.\d+\.(attn\.(inner_attn_ln|norm)|mlp\.(ffn_ln|norm))\.|\brope\.freqs",
        "an EVA-02, which has LayerNorms inside attention or the MLP",
    ),
    (r"\blayers\.\d+\.blocks\.\d+\.", "a Swin Transformer, whose attention is in windows"),
    (r"\bstages\.\d+\.blocks\.\d+\.", "a convolutional or hierarchical network"),
)


def refuse_other_families(file: str, names: Iterable[str]) -> None:
    """Raise `UserError` that names the family and what to do, if a file is of one of these.

    Args:
        file: the name of the file, which begins the error.
        names: the names of its tensors.
    """
    names = list(names)
    for pattern, family in _REFUSED:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            raise UserError(f"{file}: '{found}' is of {family}: {_INSTEAD}.")
