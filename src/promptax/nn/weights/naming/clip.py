"""The names of the image tower of a CLIP or SigLIP: Hugging Face transformers' and OpenCLIP's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
    POOL,
    POOL_NORM,
    POSITION,
    PRE_NORM,
    PROBE,
)
from promptax.nn.weights.metadata import UNKNOWN, Metadata, normalisation_of
from promptax.nn.weights.naming.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    LINEAR,
    SAME,
    TABLE,
    Scheme,
    Stored,
    joined_qkv,
    layer,
    layer_norm,
)

CLIP = Scheme(
    top={
        PATCH: Stored("embeddings.patch_embedding.weight", CONVOLUTION),
        CLASS: Stored("embeddings.class_embedding", FLAT),
        POSITION: Stored("embeddings.position_embedding.weight", TABLE),
        # The missing "e" is theirs.
        **layer_norm(PRE_NORM, "pre_layrnorm"),
        **layer_norm(NORM, "post_layernorm"),
    },
    block={
        **layer_norm(ATTENTION_NORM, "layer_norm1"),
        **layer(ATTENTION + "query/", "self_attn.q_proj", LINEAR),
        **layer(ATTENTION + "key/", "self_attn.k_proj", LINEAR),
        **layer(ATTENTION + "value/", "self_attn.v_proj", LINEAR),
        **layer(ATTENTION + "out/", "self_attn.out_proj", FROM_HEADS),
        **layer_norm(MLP_NORM, "layer_norm2"),
        **layer(HIDDEN, "mlp.fc1", LINEAR),
        **layer(OUT, "mlp.fc2", LINEAR),
    },
    block_prefix="encoder.layers.{}.",
    wrappers=("vision_model.",),
    dropped=(
        "text_model.",
        "text_projection.",
        "visual_projection.",
        "logit_scale",
        "embeddings.position_ids",
    ),
    family="clip",
)

SIGLIP = replace(
    CLIP,
    top={
        PATCH: Stored("embeddings.patch_embedding.weight", CONVOLUTION),
        PATCH_BIAS: Stored("embeddings.patch_embedding.bias", FLAT),
        POSITION: Stored("embeddings.position_embedding.weight", TABLE),
        **layer_norm(NORM, "post_layernorm"),
        PROBE: Stored("head.probe", SAME),
        **joined_qkv(POOL + ATTENTION, "head.attention.in_proj", joint="_"),
        **layer(POOL + ATTENTION + "out/", "head.attention.out_proj", FROM_HEADS),
        **layer_norm(POOL_NORM, "head.layernorm"),
        **layer(POOL + HIDDEN, "head.mlp.fc1", LINEAR),
        **layer(POOL + OUT, "head.mlp.fc2", LINEAR),
    },
    dropped=(*CLIP.dropped, "logit_bias"),
    family="siglip",
    # The authors trained with the tanh approximation, and so transformers has it.
    defaults=Metadata(activation="gelu_tanh"),
)

OPEN_CLIP = Scheme(
    top={
        PATCH: Stored("visual.conv1.weight", CONVOLUTION),
        CLASS: Stored("visual.class_embedding", FLAT),
        POSITION: Stored("visual.positional_embedding", TABLE),
        **layer_norm(PRE_NORM, "visual.ln_pre"),
        **layer_norm(NORM, "visual.ln_post"),
    },
    block={
        **layer_norm(ATTENTION_NORM, "ln_1"),
        **joined_qkv(ATTENTION, "attn.in_proj", joint="_"),
        **layer(ATTENTION + "out/", "attn.out_proj", FROM_HEADS),
        **layer_norm(MLP_NORM, "ln_2"),
        **layer(HIDDEN, "mlp.c_fc", LINEAR),
        **layer(OUT, "mlp.c_proj", LINEAR),
    },
    block_prefix="visual.transformer.resblocks.{}.",
    wrappers=("module.",),
    # Those of the text tower have no prefix in files of OpenAI and older ones of OpenCLIP.
    dropped=(
        "visual.proj",
        "transformer.",
        "token_embedding.",
        "positional_embedding",
        "ln_final.",
        "text_projection",
        "text.",
        "logit_scale",
        "logit_bias",
        "attn_mask",
        "input_resolution",
        "context_length",
        "vocab_size",
    ),
    family="clip",
)


def open_clip_metadata(config: Mapping[str, Any]) -> Metadata:
    """The metadata in an `open_clip_config.json`, which OpenCLIP puts beside weights on the hub."""
    model = config.get("model_cfg", {})
    preprocess = config.get("preprocess_cfg", {})
    if "vision_cfg" not in model:
        return UNKNOWN
    vision = model["vision_cfg"]
    normalisation = None
    if "mean" in preprocess:
        normalisation = normalisation_of(preprocess["mean"], preprocess["std"])
    if "timm_model_name" in vision:
        return Metadata(normalisation=normalisation)
    heads = None
    if "width" in vision:
        # 64 is the default of OpenCLIP.
        heads = vision["width"] // vision.get("head_width", 64)
    return Metadata(
        family="clip",
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        normalisation=normalisation,
        heads=heads,
    )
