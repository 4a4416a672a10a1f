"""Which naming scheme a file follows, and what the files beside it say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.core.files import read_json
from promptax.nn.weights.metadata import Metadata
from promptax.nn.weights.naming import clip, huggingface, timm
from promptax.nn.weights.naming.clip import open_clip_metadata
from promptax.nn.weights.naming.huggingface import huggingface_metadata
from promptax.nn.weights.naming.refused import refuse_other_families
from promptax.nn.weights.naming.scheme import Scheme
from promptax.nn.weights.naming.timm import timm_metadata

SCHEMES = (
    timm.TIMM,
    timm.DINOV2,
    timm.DINOV2_GIANT,
    timm.DINOV3_PLAIN,
    timm.DINOV3,
    timm.TIMM_DINOV3,
    timm.TIMM_DINOV3_GATED,
    huggingface.HUGGING_FACE,
    huggingface.DINOV2,
    huggingface.DINOV2_GIANT,
    huggingface.DINOV3,
    clip.CLIP,
    clip.SIGLIP,
    clip.OPEN_CLIP,
)
"""Of two that know equally many names of a file, the first is taken."""


def find_scheme(file: str, tensors: Mapping[str, np.ndarray]) -> Scheme:
    """The scheme that knows most of the names.

    Raises `UserError` if none knows any, or the names are of a model that cannot be computed.
    """
    refuse_other_families(file, tensors)
    best = max(SCHEMES, key=lambda scheme: scheme.matches(tensors))
    if not best.matches(tensors):
        raise UserError(
            f"{file}: no leaf has a name of a ViT in timm or Hugging Face transformers; the first "
            f"of {len(tensors)} is '{min(tensors, default='')}'."
        )
    return best


def config_metadata(folder: Path) -> Metadata:
    """The metadata in the files that hubs put beside weights.

    A `config.json` of anything else is ignored: many programs use that name.

    Raises `UserError` if a file is damaged.
    """
    open_clip = json_object(folder / "open_clip_config.json")
    config = json_object(folder / "config.json")
    preprocessor = json_object(folder / "preprocessor_config.json")
    try:
        if "architecture" in config:
            return timm_metadata(config)
        if "model_type" in config:
            return huggingface_metadata(config, preprocessor)
        return open_clip_metadata(open_clip)
    except UserError as error:
        raise UserError(f"'{folder / 'config.json'}': {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{folder / 'config.json'}' is not as timm or transformers write it ({error!r}): "
            "mend it, or move it away and convert with flags."
        ) from None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one if there is no such file.

    Raises `UserError` if the file is damaged or holds something else.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"'{path}' should hold a JSON object, but holds {type(content).__name__}.")
    return content
