"""The shape of a ViT, from the leaves that a file has and from its metadata."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from promptax.core.errors import UserError
from promptax.nn.sizes import Positions, ViTConfig
from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_SCALE,
    BLOCK,
    CLASS,
    GATE,
    PRE_NORM,
    PROBE,
    QUERY_NORM,
)
from promptax.nn.weights.metadata import Metadata


@dataclass(frozen=True)
class Sizes:
    """The numbers that the arrays of a file show."""

    patch: int
    dim: int
    channels: int
    depth: int
    heads: int
    mlp: int
    registers: int
    positions: int | None
    """Vectors of the learned position embedding; None if there is no such leaf."""


def config_of(
    file: str,
    leaves: Collection[str],
    sizes: Sizes,
    metadata: Metadata,
    *,
    position_name: str,
    image: int | None = None,
) -> ViTConfig:
    """The config of a ViT by what its file holds.

    Args:
        file: the name of the file, which begins each error.
        leaves: the names of the leaves that the file has.
        sizes: what their shapes show.
        metadata: what they do not show.
        position_name: the name of the position embedding in the file, for errors.
        image: side of the images that the ViT is for, in pixels; None: that of pre-training.

    Raises:
        UserError: the position embedding does not fit a square of patches, or the parts of the
            ViT do not fit each other.
    """
    first = BLOCK.format(0)
    options: dict[str, Any] = {
        "pre_norm": any(leaf.startswith(PRE_NORM) for leaf in leaves),
        "class_token": has_class_token(leaves, sizes.positions),
        "registers": sizes.registers,
        "layer_scale": first + ATTENTION_SCALE in leaves,
        "gated_mlp": f"{first}{GATE}kernel" in leaves,
        "qkv_bias": f"{first}{ATTENTION}query/bias" in leaves,
        "qk_norm": f"{first}{QUERY_NORM}scale" in leaves,
    }
    positions, pretrained = _positions(file, position_name, sizes, metadata, options)
    if PROBE in leaves:
        options["pooling"] = "attention"
    # Unknown facts are left out, so that they get the defaults of `ViTConfig`.
    known = metadata.known()
    for name in ("activation", "norm_eps", "pooling", "rotary_period"):
        if name in known:
            options[name] = known[name]
    return ViTConfig(
        patch=sizes.patch,
        dim=sizes.dim,
        depth=sizes.depth,
        heads=sizes.heads,
        mlp=sizes.mlp,
        image=pretrained if image is None else image,
        channels=sizes.channels,
        positions=positions,
        **options,
    )


def has_class_token(leaves: Collection[str], positions: int | None) -> bool:
    """Whether a ViT has a class token.

    Where the leaf is missing and the number of positions is not that of a square of patches, the
    ViT should have one, so that the leaf is reported as missing.
    """
    if CLASS in leaves:
        return True
    is_square = positions is not None and math.isqrt(positions) ** 2 == positions
    return PROBE not in leaves and not is_square


def _positions(
    file: str, name: str, sizes: Sizes, metadata: Metadata, options: dict[str, Any]
) -> tuple[Positions, int]:
    """How tokens get their positions, and the side of the images in pre-training."""
    if sizes.positions is None:
        if metadata.rotary_period is None:
            raise UserError(f"{file}: the leaf '{name}' is missing: is this a ViT's file?")
        return "rotary", metadata.image or 224
    wanted = "a class token and a square of patches"
    side = math.isqrt(max(sizes.positions - 1, 0))
    if options["class_token"] and side and sizes.positions == 1 + side**2:
        return "class_and_patches", side * sizes.patch
    # Only DeiT 3 and models with registers leave out the position of a class token. Elsewhere, a
    # square of positions is an embedding that lacks one.
    is_usual = options["registers"] or options["layer_scale"]
    side = math.isqrt(sizes.positions)
    if side and sizes.positions == side**2 and (is_usual or not options["class_token"]):
        return "patches", side * sizes.patch
    raise UserError(f"{file}: '{name}' should hold {wanted}, but has {sizes.positions} tokens.")
