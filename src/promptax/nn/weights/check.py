"""Checks of the leaves of a file, with errors that name the leaf, what was expected and what came.

Shapes are part of what a file may have wrong, so these functions look before anything is computed.
"""

import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from promptax.core.errors import UserError

Leaves = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


def check_leaves(
    file: str, expected: Mapping[str, Shape], leaves: Leaves, model: str = "ViT"
) -> None:
    """Check that a file has the leaves of a model, and no others.

    Args:
        file: the name of the file, which begins each error.
        expected: the shape of every leaf of the model.
        leaves: the leaves of the file.
        model: the name of the model in errors.

    Raises:
        UserError: a leaf is missing, extra, misshaped, not of floats or not finite. The first
            one is named.
    """
    if missing := sorted(set(expected) - set(leaves)):
        raise UserError(f"{file}: the leaf '{missing[0]}' is missing ({len(missing)} in all).")
    if extra := sorted(set(leaves) - set(expected)):
        raise UserError(
            f"{file}: the leaf '{extra[0]}' is not part of a {model} ({len(extra)} in all)."
        )
    for name, shape in expected.items():
        leaf = leaves[name]
        if leaf.shape != shape:
            raise UserError(f"{file}: '{name}' should have shape {shape}, but has {leaf.shape}.")
        # NumPy's own test does not know bfloat16, which ml_dtypes adds.
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"{file}: '{name}' should hold floats, but has {leaf.dtype}.")
        if not np.isfinite(leaf).all():
            raise UserError(f"{file}: '{name}' holds values that are not finite.")


def shape_of(file: str, leaves: Leaves, leaf: str, rank: int) -> Shape:
    """The shape of a leaf that has to be there.

    Args:
        file: the name of the file, which begins each error.
        leaves: the leaves of the file.
        leaf: the name of the leaf.
        rank: the number of axes that the leaf should have.

    Raises:
        UserError: the leaf is missing or has another number of axes.
    """
    if leaf not in leaves:
        raise UserError(f"{file}: the leaf '{leaf}' is missing: is this a ViT's file?")
    shape = leaves[leaf].shape
    if len(shape) != rank:
        raise UserError(f"{file}: '{leaf}' should have {rank} axes, but has shape {shape}.")
    return shape


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """The number of blocks of a ViT, at least 1.

    It is the highest number in a name, so that a gap shows as a missing leaf later.

    Args:
        names: the names in a file.
        prefix: how the name of a leaf of a block begins, with `{}` for the number of the block.
    """
    # Four digits are plenty, and keep a hostile name from asking for billions of blocks.
    pattern = re.compile(re.escape(prefix).replace(r"\{\}", r"(\d{1,4})"))
    matches = [pattern.match(name) for name in names]
    return 1 + max((int(match[1]) for match in matches if match), default=0)
