"""timm's names, which are also those of the code that DeiT, MAE, DINO and iBOT published."""

from collections.abc import Mapping
from typing import Any

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
    PRE_NORM,
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

TIMM = Scheme(
    top={
        PATCH: Place("patch_embed.proj.weight", CONVOLUTION),
        PATCH_BIAS: Place("patch_embed.proj.bias", FLAT),
        CLASS: Place("cls_token", SAME),
        POSITION: Place("pos_embed", SAME),
        **norm(PRE_NORM, "norm_pre"),
        **norm(NORM, "norm"),
    },
    block={
        **norm("LayerNorm_0/", "norm1"),
        **pair(ATTENTION + "query/", "attn.qkv", LINEAR, third=0),
        **pair(ATTENTION + "key/", "attn.qkv", LINEAR, third=1),
        **pair(ATTENTION + "value/", "attn.qkv", LINEAR, third=2),
        **pair(ATTENTION + "out/", "attn.proj", FROM_HEADS),
        **norm("LayerNorm_1/", "norm2"),
        **pair(HIDDEN, "mlp.fc1", LINEAR),
        **pair(OUT, "mlp.fc2", LINEAR),
    },
    blocks="blocks.{}.",
    wrappers=("module.", "backbone."),
    foreign=(
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
    fc_norm=norm(NORM, "fc_norm"),
)


def about_timm(config: Mapping[str, Any]) -> About:
    """What the `config.json` of a timm model on the Hugging Face hub says of it."""
    name, trained = config["architecture"], config.get("pretrained_cfg", {})
    family = _family(name, trained.get("tag") or "")
    activation = None
    if family == "clip":
        # timm's plain variant computes OpenAI's weights with another GELU than they were
        # trained with, and says so.
        quick = "quickgelu" in name or trained.get("tag") == "openai"
        activation = "quick_gelu" if quick else "gelu"
    scaled = normalisation_of(trained["mean"], trained["std"]) if "mean" in trained else None
    return About(
        family=family,
        activation=activation,
        normalisation=scaled,
        heads=config.get("model_args", {}).get("num_heads"),
        licence=trained.get("license"),
        source=f"timm/{name}.{trained['tag']}" if trained.get("tag") else None,
    )


def _family(architecture: str, tag: str) -> Family | None:
    if "clip" in architecture:
        return "clip"
    if architecture.startswith("deit_"):
        return "deit"
    known: Mapping[str, Family] = {"augreg": "vit", "orig": "vit", "mae": "mae", "dino": "dino"}
    return known.get(tag.split("_")[0].rstrip("2"))
