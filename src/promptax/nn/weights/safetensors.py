"""`.safetensors` files with the names of timm or Hugging Face, whole or in shards."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from promptax.core.errors import UserError
from promptax.core.files import open_file, sha256_of
from promptax.core.limits import HEADER
from promptax.nn.weights.metadata import UNKNOWN, Metadata
from promptax.nn.weights.naming.files import config_metadata, find_scheme, json_object
from promptax.nn.weights.vit import Weights

LENGTH_BYTES = 8
"""Bytes at the start of a file that tell the length of its header."""


def read_safetensors(path: Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read a `.safetensors` file, or the shards of a `.safetensors.index.json`.

    The hints go before what `config.json` and `preprocessor_config.json` beside the file contain.

    Raises `UserError` if a file is damaged, has unknown names, or holds another model than a
    plain ViT.
    """
    files = shards(path) if path.suffix == ".json" else [path]
    tensors = {name: leaf for file in files for name, leaf in _tensors(file).items()}
    return from_tensors(path, tensors, sha256_of(*files), hints)


def from_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], sha256: str, hints: Metadata
) -> Weights:
    """Weights from the tensors of a file.

    Args:
        path: the file. A `config.json` beside it is read.
        tensors: its tensors by name.
        sha256: its digest.
        hints: metadata that goes before that in other files.

    Raises:
        UserError: the names are unknown, or the model is one that this library cannot compute.
    """
    scheme = find_scheme(path.name, tensors)
    hints = hints.filled_from(config_metadata(path.parent))
    leaves, dropped, metadata = scheme.read(path.name, tensors, hints)
    return Weights(path.name, sha256, leaves, dropped, metadata)


def leaf_names(path: Path) -> list[str]:
    """The names of the tensors in a file. Raises `UserError` or what the parser raises."""
    _check_header(path)
    with safe_open(path, framework="np") as file:
        return list(file.keys())


def _check_header(path: Path) -> None:
    """Check the length of the header, of which the parser makes something ten times as large."""
    with open_file(path, "weights") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        whole = os.fstat(file.fileno()).st_size
    if length < whole:  # else the parser says that the file is cut off
        HEADER.check(length, f"the header of weights '{path}'")


def _tensors(path: Path) -> dict[str, np.ndarray]:
    _check_header(path)
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        # The parser has an exception of its own, but types that NumPy lacks raise others.
        raise UserError(
            f"weights '{path}' cannot be read as .safetensors ({error}): is it cut off?"
        ) from None


def shards(index: Path) -> list[Path]:
    """The files that an index lists, which have to lie beside it."""
    places = json_object(index).get("weight_map")
    files = sorted({str(file) for file in places.values()}) if isinstance(places, dict) else []
    # An index from elsewhere must not name files in other folders.
    beside = [file for file in files if Path(file).name == file and file.endswith(".safetensors")]
    if not files or beside != files:
        raise UserError(f"'{index}' should list .safetensors files beside it, but lists {files}.")
    return [index.parent / file for file in files]
