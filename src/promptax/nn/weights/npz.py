"""`.npz` files: Google's, in both naming generations, and our own, which say what they are."""

import json
from pathlib import Path
from typing import Any

import cattrs
import numpy as np

from promptax.core import files
from promptax.core.errors import UserError
from promptax.nn.weights.about import UNKNOWN, About
from promptax.nn.weights.checkpoint import Weights
from promptax.nn.weights.leaves import ATTENTION

FOREIGN = ("head/", "pre_logits/")
"""Leaves of the checkpoint's own classifier, which a continual learner has no use for."""
ABOUT = "promptax.json"
"""The array that holds an `About` as JSON, in the files that this library wrote."""
GOOGLE = About(family="vit")

# The first release numbered the submodules of a block in one sequence, later ones by class.
_FIRST_RELEASE = {
    "LayerNorm_2/": "LayerNorm_1/",
    "MlpBlock_3/": "MlpBlock_0/",
    "MultiHeadDotProductAttention_1/": ATTENTION,
}


def read_npz(path: str | Path, hints: About = UNKNOWN) -> Weights:
    """Read a `.npz` file of weights; what it says of itself comes after the hints.

    Raises `UserError` if the file is missing, truncated or no `.npz`.
    """
    path = Path(path)
    leaves = {_rename(name): leaf for name, leaf in files.read_npz(path, "weights").items()}
    own = _about(path, leaves.pop(ABOUT)) if ABOUT in leaves else GOOGLE
    dropped = tuple(sorted(name for name in leaves if name.startswith(FOREIGN)))
    kept = {name: leaf for name, leaf in leaves.items() if name not in dropped}
    return Weights(path.name, files.sha256_of(path), kept, dropped, hints.over(own).with_family())


def write_npz(path: Path, weights: Weights) -> None:
    """Write weights so that `read_npz` gives them back, with what is known of them.

    Raises `UserError` where the file cannot be written.
    """
    arrays: dict[str, Any] = {**weights.leaves, ABOUT: np.array(json.dumps(weights.about.known()))}
    try:
        with files.replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error}.") from None


def _about(path: Path, stored: np.ndarray) -> About:
    try:
        return cattrs.Converter(forbid_extra_keys=True).structure(json.loads(str(stored)), About)
    except (ValueError, TypeError, AttributeError, RecursionError, cattrs.BaseValidationError):
        raise UserError(
            f"weights '{path}': '{ABOUT}' is not as this version of promptax writes it: "
            "convert the original file again."
        ) from None


def _rename(name: str) -> str:
    if not name.startswith("Transformer/encoderblock_"):
        return name
    for old, new in _FIRST_RELEASE.items():
        name = name.replace(old, new)
    return name
