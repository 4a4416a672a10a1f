"""The names of Hugging Face's ViT, MAE, DINOv2 and DINOv3, and of the models that contain them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptax.core.errors import unknown
from promptax.core.settings import Interpolation
from promptax.nn.vit import Activation
from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_NORM,
    ATTENTION_SCALE,
    CLASS,
    GATE,
    HIDDEN,
    MLP_NORM,
    MLP_SCALE,
    NORM,
    OUT,
    PATCH,
    PATCH_BIAS,
    POSITION,
    REGISTERS,
)
from promptax.nn.weights.metadata import Family, Metadata, normalisation_of
from promptax.nn.weights.naming.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    HEADS,
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

DINOV2 = replace(
    HUGGING_FACE,
    top={**HUGGING_FACE.top, REGISTERS: Stored("embeddings.register_tokens", SAME)},
    block={
        **layer_norm(ATTENTION_NORM, "norm1"),
        **layer(ATTENTION + "query/", "attention.attention.query", LINEAR),
        **layer(ATTENTION + "key/", "attention.attention.key", LINEAR),
        **layer(ATTENTION + "value/", "attention.attention.value", LINEAR),
        **layer(ATTENTION + "out/", "attention.output.dense", FROM_HEADS),
        ATTENTION_SCALE: Stored("layer_scale1.lambda1", FLAT),
        **layer_norm(MLP_NORM, "norm2"),
        **layer(HIDDEN, "mlp.fc1", LINEAR),
        **layer(OUT, "mlp.fc2", LINEAR),
        MLP_SCALE: Stored("layer_scale2.lambda1", FLAT),
    },
    wrappers=("dinov2.", "dinov2_with_registers.", "backbone."),
    refused={},
    family="dinov2",
    defaults=Metadata(activation="gelu"),
)
DINOV2_GIANT = replace(
    DINOV2,
    block={
        **DINOV2.block,
        **layer(GATE, "mlp.weights_in", LINEAR, part=0, parts=2),
        **layer(HIDDEN, "mlp.weights_in", LINEAR, part=1, parts=2),
        **layer(OUT, "mlp.weights_out", LINEAR),
    },
)
DINOV3 = Scheme(
    top={
        PATCH: Stored("embeddings.patch_embeddings.weight", CONVOLUTION),
        PATCH_BIAS: Stored("embeddings.patch_embeddings.bias", FLAT),
        CLASS: Stored("embeddings.cls_token", SAME),
        REGISTERS: Stored("embeddings.register_tokens", SAME),
        **layer_norm(NORM, "norm"),
    },
    block={
        **layer_norm(ATTENTION_NORM, "norm1"),
        **layer(ATTENTION + "query/", "attention.q_proj", LINEAR),
        ATTENTION + "key/kernel": Stored("attention.k_proj.weight", LINEAR),
        **layer(ATTENTION + "value/", "attention.v_proj", LINEAR),
        **layer(ATTENTION + "out/", "attention.o_proj", FROM_HEADS),
        ATTENTION_SCALE: Stored("layer_scale1.lambda1", FLAT),
        **layer_norm(MLP_NORM, "norm2"),
        **layer(GATE, "mlp.gate_proj", LINEAR),
        **layer(HIDDEN, "mlp.up_proj", LINEAR),
        **layer(OUT, "mlp.down_proj", LINEAR),
        MLP_SCALE: Stored("layer_scale2.lambda1", FLAT),
    },
    block_prefix="layer.{}.",
    wrappers=("dinov3_vit.", "model.", "backbone."),
    dropped=("classifier.", "embeddings.mask_token", "rope_embeddings."),
    # The huge model has more heads than other ViTs of its width.
    heads={**HEADS, 1280: 20, 4096: 32},
    family="dinov3",
)

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
_FAMILIES: Mapping[str, Family] = {
    "vit_mae": "mae",
    "deit": "deit",
    "clip": "clip",
    "clip_vision_model": "clip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "siglip2": "siglip",
    "siglip2_vision_model": "siglip",
}
_DEFAULT_ACTIVATIONS: Mapping[Family, Activation] = {"clip": "quick_gelu", "siglip": "gelu_tanh"}
"""The activation of a config that does not name one, for families in which it is not GELU."""


_INTERPOLATIONS: Mapping[int | None, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""


def huggingface_metadata(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Metadata:
    """The metadata in `config.json` and `preprocessor_config.json` (empty if there is none).

    Raises `UserError` for an activation that this library does not have.
    """
    # A CLIP of two towers has one config for each.
    tower = config.get("vision_config", config)
    family = _FAMILIES.get(config["model_type"])
    named = tower.get("hidden_act")
    if named is not None and named not in _ACTIVATIONS:
        raise unknown("activation", named, _ACTIVATIONS)
    activation = None if named is None else _ACTIVATIONS[named]
    if activation is None and family is not None:
        activation = _DEFAULT_ACTIVATIONS.get(family)
    if config.get("use_swiglu_ffn"):
        # DINOv2 has it in the place of the activation that its config names.
        activation = "silu"
    normalisation = None
    if preprocessor.get("do_normalize", True) and "image_mean" in preprocessor:
        normalisation = normalisation_of(preprocessor["image_mean"], preprocessor["image_std"])
    return Metadata(
        family=family,
        activation=activation,
        norm_eps=tower.get("layer_norm_eps"),
        normalisation=normalisation,
        heads=tower.get("num_attention_heads"),
        image=tower.get("image_size") if family == "dinov3" else None,
        rotary_period=tower.get("rope_theta") if family == "dinov3" else None,
        resize="bicubic" if config["model_type"] == "dinov2" else None,
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
