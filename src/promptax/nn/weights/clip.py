"""The names of the image tower in Hugging Face's `CLIPModel` and `CLIPVisionModel`."""

from promptax.nn.weights.about import FAMILIES
from promptax.nn.weights.leaves import (
    ATTENTION,
    CLASS,
    HIDDEN,
    NORM,
    OUT,
    PATCH,
    POSITION,
    PRE_NORM,
)
from promptax.nn.weights.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    LINEAR,
    TABLE,
    Place,
    Scheme,
    norm,
    pair,
)

CLIP = Scheme(
    top={
        PATCH: Place("embeddings.patch_embedding.weight", CONVOLUTION),
        CLASS: Place("embeddings.class_embedding", FLAT),
        POSITION: Place("embeddings.position_embedding.weight", TABLE),
        **norm(PRE_NORM, "pre_layrnorm"),  # spelled so
        **norm(NORM, "post_layernorm"),
    },
    block={
        **norm("LayerNorm_0/", "layer_norm1"),
        **pair(ATTENTION + "query/", "self_attn.q_proj", LINEAR),
        **pair(ATTENTION + "key/", "self_attn.k_proj", LINEAR),
        **pair(ATTENTION + "value/", "self_attn.v_proj", LINEAR),
        **pair(ATTENTION + "out/", "self_attn.out_proj", FROM_HEADS),
        **norm("LayerNorm_1/", "layer_norm2"),
        **pair(HIDDEN, "mlp.fc1", LINEAR),
        **pair(OUT, "mlp.fc2", LINEAR),
    },
    blocks="encoder.layers.{}.",
    wrappers=("vision_model.",),
    foreign=(
        "text_model.",
        "text_projection.",
        "visual_projection.",
        "logit_scale",
        "embeddings.position_ids",
    ),
    about=FAMILIES["clip"],
)
