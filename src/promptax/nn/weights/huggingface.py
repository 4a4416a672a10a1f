"""The names of Hugging Face's `ViTModel`, `ViTMAEModel` and the models around them."""

from collections.abc import Mapping
from typing import Any

from promptax.core.errors import unknown
from promptax.nn.vit import Activation
from promptax.nn.weights.about import About, Family, normalisation_of
from promptax.nn.weights.leaves import (
    ATTENTION,
    CLASS,
    HIDDEN,
    NORM,
    OUT,
    PATCH,
    PATCH_BIAS,
    POSITION,
)
from promptax.nn.weights.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    LINEAR,
    SAME,
    Place,
    Scheme,
    norm,
    pair,
)

HUGGING_FACE = Scheme(
    top={
        PATCH: Place("embeddings.patch_embeddings.projection.weight", CONVOLUTION),
        PATCH_BIAS: Place("embeddings.patch_embeddings.projection.bias", FLAT),
        CLASS: Place("embeddings.cls_token", SAME),
        POSITION: Place("embeddings.position_embeddings", SAME),
        **norm(NORM, "layernorm"),
    },
    block={
        **norm("LayerNorm_0/", "layernorm_before"),
        **pair(ATTENTION + "query/", "attention.attention.query", LINEAR),
        **pair(ATTENTION + "key/", "attention.attention.key", LINEAR),
        **pair(ATTENTION + "value/", "attention.attention.value", LINEAR),
        **pair(ATTENTION + "out/", "attention.output.dense", FROM_HEADS),
        **norm("LayerNorm_1/", "layernorm_after"),
        **pair(HIDDEN, "intermediate.dense", LINEAR),
        **pair(OUT, "output.dense", LINEAR),
    },
    blocks="encoder.layer.{}.",
    wrappers=("vit.", "deit."),
    foreign=("classifier.", "pooler.", "decoder.", "embeddings.mask_token"),
    refused={
        "embeddings.distillation_token": (
            "a distilled DeiT, whose features are two tokens: take the plain DeiT"
        ),
    },
    about=About(activation="gelu", norm_eps=1e-12),
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


def about_hugging_face(config: Mapping[str, Any], images: Mapping[str, Any]) -> About:
    """What `config.json` and `preprocessor_config.json` (empty, if there is none) say.

    Raises `UserError` for an activation that this library does not have.
    """
    tower = config.get("vision_config", config)
    activation = tower.get("hidden_act")
    if activation is not None and activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS)
    return About(
        family=_FAMILIES.get(config["model_type"]),
        activation=None if activation is None else _ACTIVATIONS[activation],
        norm_eps=tower.get("layer_norm_eps"),
        normalisation=(
            normalisation_of(images["image_mean"], images["image_std"])
            if images.get("do_normalize", True) and "image_mean" in images
            else None
        ),
        heads=tower.get("num_attention_heads"),
        source=config.get("_name_or_path") or None,
    )
