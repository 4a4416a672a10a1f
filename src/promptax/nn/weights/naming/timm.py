"""The names of timm, which are also those of the code that DeiT, MAE, DINO and iBOT published."""

from collections.abc import Mapping
from typing import Any

from promptax.core.settings import Interpolation
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
    PRE_NORM,
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

TIMM = Scheme(
    top={
        PATCH: Stored("patch_embed.proj.weight", CONVOLUTION),
        PATCH_BIAS: Stored("patch_embed.proj.bias", FLAT),
        CLASS: Stored("cls_token", SAME),
        POSITION: Stored("pos_embed", SAME),
        **layer_norm(PRE_NORM, "norm_pre"),
        **layer_norm(NORM, "norm"),
    },
    block={
        **layer_norm(ATTENTION_NORM, "norm1"),
        **layer(ATTENTION + "query/", "attn.qkv", LINEAR, third=0),
        **layer(ATTENTION + "key/", "attn.qkv", LINEAR, third=1),
        **layer(ATTENTION + "value/", "attn.qkv", LINEAR, third=2),
        **layer(ATTENTION + "out/", "attn.proj", FROM_HEADS),
        **layer_norm(MLP_NORM, "norm2"),
        **layer(HIDDEN, "mlp.fc1", LINEAR),
        **layer(OUT, "mlp.fc2", LINEAR),
    },
    block_prefix="blocks.{}.",
    wrappers=("module.", "backbone."),
    dropped=(
        "head.",
        "fc.",
        "classifier.",
        "pre_logits.",
        "mask_token",
        "masked_embed",
        "decoder_",
    ),
    refused={
        "dist_token": "a distilled DeiT, whose features are two tokens: take the plain DeiT",
    },
    fc_norm=layer_norm(NORM, "fc_norm"),
)


_INTERPOLATIONS: Mapping[str | None, Interpolation] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


def timm_metadata(config: Mapping[str, Any]) -> Metadata:
    """The metadata in the `config.json` of a timm model on the Hugging Face hub."""
    architecture = config["architecture"]
    pretrained = config.get("pretrained_cfg", {})
    tag = pretrained.get("tag")
    family = _family(architecture, tag or "")
    activation = None
    if family == "clip":
        # OpenAI trained with the quick GELU. timm's plain variant of the architecture computes
        # another one on these weights, and recommends its quickgelu variant for exact features.
        is_quick = "quickgelu" in architecture or tag == "openai"
        activation = "quick_gelu" if is_quick else "gelu"
    normalisation = None
    if "mean" in pretrained:
        normalisation = normalisation_of(pretrained["mean"], pretrained["std"])
    return Metadata(
        family=family,
        activation=activation,
        normalisation=normalisation,
        heads=config.get("model_args", {}).get("num_heads"),
        crop=pretrained.get("crop_pct"),
        interpolation=_INTERPOLATIONS.get(pretrained.get("interpolation")),
        licence=pretrained.get("license"),
        source=f"timm/{architecture}.{tag}" if tag else None,
    )


def _family(architecture: str, tag: str) -> Family | None:
    if "clip" in architecture:
        return "clip"
    if architecture.startswith("deit_"):
        return "deit"
    known: Mapping[str, Family] = {
        "augreg": "vit",
        "augreg2": "vit",
        "orig": "vit",
        "mae": "mae",
        "dino": "dino",
    }
    # A tag begins with the recipe: `augreg2_in21k_ft_in1k`.
    recipe = tag.split("_")[0]
    return known.get(recipe)
