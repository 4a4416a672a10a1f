"""The names of the image tower in Hugging Face's `CLIPModel` and `CLIPVisionModel`."""

from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_NORM,
    CLASS,
    HIDDEN,
    MLP_NORM,
    NORM,
    OUT,
    PATCH,
    POSITION,
    PRE_NORM,
)
from promptax.nn.weights.metadata import FAMILIES
from promptax.nn.weights.naming.scheme import (
    CONVOLUTION,
    FLAT,
    FROM_HEADS,
    LINEAR,
    TABLE,
    Scheme,
    Stored,
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
    defaults=FAMILIES["clip"],
)
