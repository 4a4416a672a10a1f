"""The names of timm, which are also those of the code that DeiT, MAE, DINO, iBOT, MoCo v3, DINOv2
and DINOv3 published, but for a few layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptax.core.settings import Interpolation
from promptax.nn.vit import Pooling
from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_NORM,
    ATTENTION_SCALE,
    CLASS,
    GATE,
    HIDDEN,
    KEY_NORM,
    MLP_NORM,
    MLP_SCALE,
    NORM,
    OUT,
    PATCH,
    PATCH_BIAS,
    POOL,
    POOL_NORM,
    POSITION,
    PRE_NORM,
    PROBE,
    QUERY_NORM,
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
    joined_qkv,
    layer,
    layer_norm,
)

TIMM = Scheme(
    top={
        PATCH: Stored("patch_embed.proj.weight", CONVOLUTION),
        PATCH_BIAS: Stored("patch_embed.proj.bias", FLAT),
        CLASS: Stored("cls_token", SAME),
        REGISTERS: Stored("reg_token", SAME),
        POSITION: Stored("pos_embed", SAME),
        **layer_norm(PRE_NORM, "norm_pre"),
        **layer_norm(NORM, "norm"),
        PROBE: Stored("attn_pool.latent", SAME),
        **layer(POOL + ATTENTION + "query/", "attn_pool.q", LINEAR),
        **layer(POOL + ATTENTION + "key/", "attn_pool.kv", LINEAR, part=0, parts=2),
        **layer(POOL + ATTENTION + "value/", "attn_pool.kv", LINEAR, part=1, parts=2),
        **layer(POOL + ATTENTION + "out/", "attn_pool.proj", FROM_HEADS),
        **layer_norm(POOL_NORM, "attn_pool.norm"),
        **layer(POOL + HIDDEN, "attn_pool.mlp.fc1", LINEAR),
        **layer(POOL + OUT, "attn_pool.mlp.fc2", LINEAR),
    },
    block={
        **layer_norm(ATTENTION_NORM, "norm1"),
        **joined_qkv(ATTENTION, "attn.qkv"),
        **layer_norm(QUERY_NORM, "attn.q_norm"),
        **layer_norm(KEY_NORM, "attn.k_norm"),
        **layer(ATTENTION + "out/", "attn.proj", FROM_HEADS),
        ATTENTION_SCALE: Stored("ls1.gamma", FLAT),
        **layer_norm(MLP_NORM, "norm2"),
        **layer(HIDDEN, "mlp.fc1", LINEAR),
        **layer(OUT, "mlp.fc2", LINEAR),
        MLP_SCALE: Stored("ls2.gamma", FLAT),
    },
    # DINOv2's giant model, whose MLP timm calls "packed".
    packed={
        **layer(GATE, "mlp.fc1", LINEAR, part=0, parts=2),
        **layer(HIDDEN, "mlp.fc1", LINEAR, part=1, parts=2),
    },
    block_prefix="blocks.{}.",
    # MoCo v3 has its ViT in "module.base_encoder.", OpenCLIP those of timm in "visual.trunk.".
    wrappers=("module.", "backbone.", "base_encoder.", "visual.trunk."),
    dropped=(
        "head.",
        "fc.",
        "classifier.",
        "pre_logits.",
        "mask_token",
        "masked_embed",
        "decoder_",
        "momentum_encoder.",
        "predictor.",
        "text.",
        "logit_scale",
        "logit_bias",
    ),
    refused={
        "dist_token": "a distilled DeiT, whose features are two tokens: take the plain DeiT",
    },
    fc_norm=layer_norm(NORM, "fc_norm"),
)
DINOV2 = replace(TIMM, top={**TIMM.top, REGISTERS: Stored("register_tokens", SAME)})
"""The names of DINOv2's own code."""
DINOV2_GIANT = replace(
    DINOV2,
    block={
        **TIMM.block,
        **layer(GATE, "mlp.w12", LINEAR, part=0, parts=2),
        **layer(HIDDEN, "mlp.w12", LINEAR, part=1, parts=2),
        **layer(OUT, "mlp.w3", LINEAR),
    },
    packed={},
)
_WITHOUT_POSITION = {leaf: stored for leaf, stored in TIMM.top.items() if leaf != POSITION}
_WITHOUT_KEY_BIAS = {
    leaf: stored for leaf, stored in TIMM.block.items() if leaf != ATTENTION + "key/bias"
}
DINOV3 = replace(
    TIMM,
    top={**_WITHOUT_POSITION, REGISTERS: Stored("storage_tokens", SAME)},
    # A mask in the file makes the bias of the keys zero, whatever is stored of it.
    block={
        **_WITHOUT_KEY_BIAS,
        **layer(GATE, "mlp.w1", LINEAR),
        **layer(HIDDEN, "mlp.w2", LINEAR),
        **layer(OUT, "mlp.w3", LINEAR),
    },
    packed={},
    dropped=(*TIMM.dropped, "rope_embed.", "local_cls_norm."),
    dropped_ends=(".bias_mask",),
    # The huge model has more heads than other ViTs of its width.
    heads={**HEADS, 1280: 20, 4096: 32},
    family="dinov3",
)
"""The names of DINOv3's own code, for the models whose MLP has a gate."""
DINOV3_PLAIN = replace(
    DINOV3,
    block=_WITHOUT_KEY_BIAS,
)
"""The same for the models whose MLP has none."""
_EVA_BLOCK = {
    **_WITHOUT_KEY_BIAS,
    ATTENTION + "query/bias": Stored("attn.q_bias", FLAT),
    ATTENTION + "value/bias": Stored("attn.v_bias", FLAT),
    ATTENTION_SCALE: Stored("gamma_1", FLAT),
    MLP_SCALE: Stored("gamma_2", FLAT),
}
TIMM_DINOV3 = replace(
    DINOV3,
    top={**_WITHOUT_POSITION, REGISTERS: Stored("reg_token", SAME)},
    block=_EVA_BLOCK,
)
"""timm's names of a DINOv3, which are those of its EVA."""
TIMM_DINOV3_GATED = replace(
    TIMM_DINOV3,
    block={
        **_EVA_BLOCK,
        **layer(GATE, "mlp.fc1_g", LINEAR),
        **layer(HIDDEN, "mlp.fc1_x", LINEAR),
    },
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
    arguments = config.get("model_args", {})
    activation = None
    if family == "clip":
        # OpenAI trained with the quick GELU. timm's plain variant of the architecture computes
        # another one on these weights, and recommends its quickgelu variant for exact features.
        is_quick = "quickgelu" in architecture or tag == "openai"
        activation = "quick_gelu" if is_quick else "gelu"
    elif family == "siglip":
        activation = "gelu_tanh" if arguments.get("act_layer") == "gelu_tanh" else "gelu"
    normalisation = None
    if "mean" in pretrained:
        normalisation = normalisation_of(pretrained["mean"], pretrained["std"])
    return Metadata(
        family=family,
        activation=activation,
        normalisation=normalisation,
        pooling=_POOLINGS.get(config.get("global_pool", "")) if family == "siglip" else None,
        heads=arguments.get("num_heads"),
        image=_image(pretrained, arguments) if family == "dinov3" else None,
        resize="bicubic_antialias" if family == "dinov2" else None,
        crop=pretrained.get("crop_pct"),
        interpolation=_INTERPOLATIONS.get(pretrained.get("interpolation")),
        licence=pretrained.get("license"),
        source=f"timm/{architecture}.{tag}" if tag else None,
    )


_POOLINGS: Mapping[str, Pooling] = {"map": "attention", "avg": "mean_after_norm"}


def _image(pretrained: Mapping[str, Any], arguments: Mapping[str, Any]) -> int | None:
    """The side of the images, where no position embedding shows it."""
    size = arguments.get("img_size") or pretrained.get("input_size")
    # A number, or height and width, after the channels in an `input_size`.
    return size[-1] if isinstance(size, list) else size


def _family(architecture: str, tag: str) -> Family | None:
    named: Mapping[str, Family] = {
        "dinov3": "dinov3",
        "dinov2": "dinov2",
        "siglip": "siglip",
        "clip": "clip",
        "deit3": "deit3",
    }
    for word, family in named.items():
        if word in architecture:
            return family
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
