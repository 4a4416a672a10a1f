"""The names of Hugging Face's `ViTModel`, `ViTMAEModel` and the models that contain them."""

from collections.abc import Mapping
from typing import Any

from promptax.core.errors import unknown
from promptax.core.settings import Interpolation
from promptax.nn.vit import Activation
from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_NORM,
    CLASS,
    HIDDEN,
    MLP_NORM,
    NORM,
    OUT,
    PATCH,
    PATCH_BIAS,
    POSITION,
)
from promptax.nn.weights.metadata import Family, Metadata, normalisation_of
from promptax.nn.weights.naming.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    LINEAR,
    SAME,
    Scheme,
    Stored,
    layer,
    layer_norm,
)

HUGGING_FACE = Scheme(
    top={
        PATCH: Stored("embeddings.patch_embeddings.projection.weight", CONVOLUTION),
        PATCH_BIAS: Stored("embeddings.patch_embeddings.projection.bias", FLAT),
        CLASS: Stored("embeddings.cls_token", SAME),
        POSITION: Stored("embeddings.position_embeddings", SAME),
        **layer_norm(NORM, "layernorm"),
    },
    block={
        **layer_norm(ATTENTION_NORM, "layernorm_before"),
        **layer(ATTENTION + "query/", "attention.attention.query", LINEAR),
        **layer(ATTENTION + "key/", "attention.attention.key", LINEAR),
        **layer(ATTENTION + "value/", "attention.attention.value", LINEAR),
        **layer(ATTENTION + "out/", "attention.output.dense", FROM_HEADS),
        **layer_norm(MLP_NORM, "layernorm_after"),
        **layer(HIDDEN, "intermediate.dense", LINEAR),
        **layer(OUT, "output.dense", LINEAR),
    },
    block_prefix="encoder.layer.{}.",
    wrappers=("vit.", "deit."),
    dropped=("classifier.", "pooler.", "decoder.", "embeddings.mask_token"),
    refused={
        "embeddings.distillation_token": (
            "a distilled DeiT, whose features are two tokens: take the plain DeiT"
        ),
    },
    defaults=Metadata(activation="gelu", norm_eps=1e-12),
)

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_FAMILIES: Mapping[str, Family] = {
    "vit_mae": "mae",
    "deit": "deit",
    "clip": "clip",
    "clip_vision_model": "clip",
}


_INTERPOLATIONS: Mapping[int | None, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""


def huggingface_metadata(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Metadata:
    """The metadata in `config.json` and `preprocessor_config.json` (empty if there is none).

    Raises `UserError` for an activation that this library does not have.
    """
    # A CLIP of two towers has one config for each.
    tower = config.get("vision_config", config)
    activation = tower.get("hidden_act")
    if activation is not None and activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS)
    normalisation = None
    if preprocessor.get("do_normalize", True) and "image_mean" in preprocessor:
        normalisation = normalisation_of(preprocessor["image_mean"], preprocessor["image_std"])
    return Metadata(
        family=_FAMILIES.get(config["model_type"]),
        activation=None if activation is None else _ACTIVATIONS[activation],
        norm_eps=tower.get("layer_norm_eps"),
        normalisation=normalisation,
        heads=tower.get("num_attention_heads"),
        crop=_crop(preprocessor),
        interpolation=_INTERPOLATIONS.get(preprocessor.get("resample")),
        source=config.get("_name_or_path") or None,
    )


def _crop(preprocessor: Mapping[str, Any]) -> float | None:
    """The share of a resized image that is kept; None if the processor does not say.

    Sizes are a number, a shortest edge, or a height and width.
    """
    if not preprocessor.get("do_resize", False) or "size" not in preprocessor:
        return None
    if not preprocessor.get("do_center_crop", False):
        return 1.0
    resized = _side(preprocessor["size"])
    return min(1.0, _side(preprocessor.get("crop_size", resized)) / resized)


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge", size.get("height", 0)))
    return int(size)
