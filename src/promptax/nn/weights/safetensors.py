"""`.safetensors` files with the names of timm or Hugging Face, whole or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from promptax.core.errors import UserError
from promptax.core.files import read_json, require_file, sha256_of
from promptax.nn.weights.metadata import UNKNOWN, Metadata
from promptax.nn.weights.naming.clip import CLIP
from promptax.nn.weights.naming.huggingface import HUGGING_FACE, huggingface_metadata
from promptax.nn.weights.naming.scheme import Scheme
from promptax.nn.weights.naming.timm import TIMM, timm_metadata
from promptax.nn.weights.vit import Weights

SCHEMES = (TIMM, HUGGING_FACE, CLIP)


def read_safetensors(path: Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read a `.safetensors` file, or the shards of a `.safetensors.index.json`.

    The hints go before what `config.json` and `preprocessor_config.json` beside the file contain.

    Raises `UserError` if a file is damaged, has unknown names, or holds another model than a
    plain ViT.
    """
    files = shards(path) if path.suffix == ".json" else [path]
    tensors = {name: leaf for file in files for name, leaf in _tensors(file).items()}
    scheme = _find_scheme(path.name, tensors)
    hints = hints.filled_from(_config_metadata(path.parent))
    leaves, dropped, metadata = scheme.read(path.name, tensors, hints)
    return Weights(path.name, sha256_of(*files), leaves, dropped, metadata)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    require_file(path, "weights")
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
    places = _json(index).get("weight_map")
    files = sorted({str(file) for file in places.values()}) if isinstance(places, dict) else []
    # An index from elsewhere must not name files in other folders.
    beside = [file for file in files if Path(file).name == file and file.endswith(".safetensors")]
    if not files or beside != files:
        raise UserError(f"'{index}' should list .safetensors files beside it, but lists {files}.")
    return [index.parent / file for file in files]


def _find_scheme(file: str, tensors: Mapping[str, np.ndarray]) -> Scheme:
    """The scheme that knows most of the names."""
    best = max(SCHEMES, key=lambda scheme: scheme.matches(tensors))
    if not best.matches(tensors):
        raise UserError(
            f"{file}: no leaf has a name of a ViT in timm or Hugging Face transformers; the first "
            f"of {len(tensors)} is '{min(tensors, default='')}'."
        )
    return best


def _config_metadata(folder: Path) -> Metadata:
    """The metadata in the files that hubs put beside weights.

    A `config.json` of anything else is ignored: many programs use that name.
    """
    config = _json(folder / "config.json")
    preprocessor = _json(folder / "preprocessor_config.json")
    try:
        if "architecture" in config:
            return timm_metadata(config)
        return huggingface_metadata(config, preprocessor) if "model_type" in config else UNKNOWN
    except UserError as error:
        raise UserError(f"'{folder / 'config.json'}': {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{folder / 'config.json'}' is not as timm or transformers write it ({error!r}): "
            "mend it, or move it away and convert with flags."
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one if there is no such file."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold a JSON object, but holds {type(content).__name__}.")
    return content
