"""`.safetensors` files with the names of timm or Hugging Face, whole or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from promptax.core.errors import UserError
from promptax.core.files import read_json, require_file, sha256_of
from promptax.nn.weights.about import UNKNOWN, About
from promptax.nn.weights.checkpoint import Weights
from promptax.nn.weights.clip import CLIP
from promptax.nn.weights.huggingface import HUGGING_FACE, about_hugging_face
from promptax.nn.weights.scheme import Scheme
from promptax.nn.weights.timm import TIMM, about_timm

SCHEMES = (TIMM, HUGGING_FACE, CLIP)


def read_safetensors(path: Path, hints: About = UNKNOWN) -> Weights:
    """Read a `.safetensors` file, or the shards of a `.safetensors.index.json`.

    What `config.json` and `preprocessor_config.json` beside it say comes after the hints.

    Raises `UserError` if a file is damaged, of no known naming, or no plain ViT's.
    """
    files = _shards(path) if path.suffix == ".json" else [path]
    tensors = {name: leaf for file in files for name, leaf in _tensors(file).items()}
    scheme = _scheme(path.name, tensors)
    leaves, dropped, about = scheme.read(path.name, tensors, hints.over(_beside(path.parent)))
    return Weights(path.name, sha256_of(*files), leaves, dropped, about)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    require_file(path, "weights")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        # The parser has an exception of its own, but types that NumPy lacks raise others.
        raise UserError(
            f"weights '{path}' cannot be read as .safetensors ({error}): truncated?"
        ) from None


def _shards(index: Path) -> list[Path]:
    places = _json(index).get("weight_map")
    files = sorted({str(file) for file in places.values()}) if isinstance(places, dict) else []
    beside = [file for file in files if Path(file).name == file and file.endswith(".safetensors")]
    if not files or beside != files:
        raise UserError(f"'{index}' should list .safetensors files beside it, but lists {files}.")
    return [index.parent / file for file in files]


def _scheme(file: str, tensors: Mapping[str, np.ndarray]) -> Scheme:
    best = max(SCHEMES, key=lambda scheme: scheme.matches(tensors))
    if not best.matches(tensors):
        raise UserError(
            f"{file}: no leaf has a name of a ViT in timm or Hugging Face transformers; the first "
            f"of {len(tensors)} is '{min(tensors, default='')}'."
        )
    return best


def _beside(folder: Path) -> About:
    """What the files say that hubs put beside weights; other files of that name say nothing."""
    config, images = (_json(folder / f"{name}config.json") for name in ("", "preprocessor_"))
    try:
        if "architecture" in config:
            return about_timm(config)
        return about_hugging_face(config, images) if "model_type" in config else About()
    except UserError as error:
        raise UserError(f"'{folder / 'config.json'}': {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{folder / 'config.json'}' is not as timm or transformers write it ({error!r}): "
            "mend it, or move it away and convert with flags."
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold a JSON object, but holds {type(content).__name__}.")
    return content
