"""`.npz` files: Google's, in both generations of names, and our own, which hold their metadata."""

import json
from pathlib import Path
from typing import Any

import cattrs
import numpy as np

from promptax.core import files
from promptax.core.errors import UserError
from promptax.nn.weights.leaves import ATTENTION, MLP_NORM
from promptax.nn.weights.metadata import UNKNOWN, Metadata
from promptax.nn.weights.vit import Weights

DROPPED = ("head/", "pre_logits/")
"""Prefixes of the classifier of the checkpoint, which is not used."""
METADATA = "promptax.json"
"""The array that holds the `Metadata` as JSON, in the files that this library wrote."""
GOOGLE = Metadata(family="vit")
"""The metadata of a file without that array: Google alone publishes its weights as `.npz`."""

# The first release numbers the submodules of a block in one sequence, later ones by class.
_FIRST_RELEASE = {
    "LayerNorm_2/": MLP_NORM,
    "MlpBlock_3/": "MlpBlock_0/",
    "MultiHeadDotProductAttention_1/": ATTENTION,
}


def read_npz(path: str | Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read a `.npz` file of weights; the hints go before the metadata in the file.

    Raises `UserError` if the file is missing, truncated or no `.npz`.
    """
    path = Path(path)
    leaves = {_rename(name): leaf for name, leaf in files.read_npz(path, "weights").items()}
    stored = _metadata(path, leaves.pop(METADATA)) if METADATA in leaves else GOOGLE
    dropped = tuple(sorted(name for name in leaves if name.startswith(DROPPED)))
    return Weights(
        name=path.name,
        sha256=files.sha256_of(path),
        leaves={name: leaf for name, leaf in leaves.items() if name not in dropped},
        dropped=dropped,
        metadata=hints.filled_from(stored).filled_from_family(),
    )


def write_npz(path: Path, weights: Weights) -> None:
    """Write weights and their metadata so that `read_npz` returns them.

    Raises `UserError` if the file cannot be written.
    """
    metadata = json.dumps(weights.metadata.known())
    arrays: dict[str, Any] = {**weights.leaves, METADATA: np.array(metadata)}
    try:
        with files.replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error}.") from None


def _metadata(path: Path, stored: np.ndarray) -> Metadata:
    converter = cattrs.Converter(forbid_extra_keys=True)
    try:
        return converter.structure(json.loads(str(stored)), Metadata)
    except (ValueError, TypeError, AttributeError, RecursionError, cattrs.BaseValidationError):
        raise UserError(
            f"weights '{path}': '{METADATA}' is not as this version of promptax writes it: "
            "convert the original file again."
        ) from None


def _rename(name: str) -> str:
    """The name of a leaf in later releases."""
    if not name.startswith("Transformer/encoderblock_"):
        return name
    for old, new in _FIRST_RELEASE.items():
        name = name.replace(old, new)
    return name
