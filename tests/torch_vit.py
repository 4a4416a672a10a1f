"""ViTs under PyTorch's names and layouts: random tensors, and a NumPy forward pass over them."""

from typing import Any

import numpy as np
from scipy.special import erf

DIM, HEADS, DEPTH, MLP, PATCH, GRID = 32, 4, 2, 48, 8, 2
IMAGE = GRID * PATCH
CLIP = {
    "patch": "embeddings.patch_embedding",
    "cls": "embeddings.class_embedding",
    "pos": "embeddings.position_embedding.weight",
    "pre": "pre_layrnorm",
    "norm": "post_layernorm",
    "block": "encoder.layers.{}.",
    "norm1": "layer_norm1",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
TIMM = {
    "patch": "patch_embed.proj",
    "cls": "cls_token",
    "pos": "pos_embed",
    "pre": "norm_pre",
    "norm": "norm",
    "block": "blocks.{}.",
    "norm1": "norm1",
    "qkv": ("attn.qkv",),
    "out": "attn.proj",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
HUGGING_FACE = {
    "patch": "embeddings.patch_embeddings.projection",
    "cls": "embeddings.cls_token",
    "pos": "embeddings.position_embeddings",
    "norm": "layernorm",
    "block": "encoder.layer.{}.",
    "norm1": "layernorm_before",
    "qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "out": "attention.output.dense",
    "norm2": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
}


def make(names: dict[str, Any], pre: bool = False) -> dict[str, np.ndarray]:
    """Random tensors; with `pre`, of a CLIP, whose patches have no bias."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(0, 0.3, shape).astype(np.float32)
    tensors = {}

    def layer(name, outputs, inputs):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = draw(outputs, inputs), draw(outputs)

    def norm(name):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + draw(DIM), draw(DIM)

    flat = names is CLIP
    tensors[names["cls"]] = draw(*(() if flat else (1, 1)), DIM)
    tensors[names["pos"]] = draw(*(() if flat else (1,)), 1 + GRID**2, DIM)
    tensors[names["patch"] + ".weight"] = draw(DIM, 3, PATCH, PATCH)
    if not pre:
        tensors[names["patch"] + ".bias"] = draw(DIM)
    for name in ["norm", "pre"][: 1 + pre]:
        norm(names[name])
    for n in range(DEPTH):
        block = names["block"].format(n)
        norm(block + names["norm1"])
        norm(block + names["norm2"])
        for name in names["qkv"]:
            layer(block + name, 3 * DIM // len(names["qkv"]), DIM)
        layer(block + names["out"], DIM, DIM)
        layer(block + names["up"], MLP, DIM)
        layer(block + names["down"], DIM, MLP)
    return tensors


def forward(tensors, names, images, activation="gelu", eps=1e-6, pooling="token"):
    """Features `[batch, dim]` of images `[batch, height, width, channel]`, in float64."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    linear = lambda name, x: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attention(block, x):
        query, key, value = np.split(
            np.concatenate([linear(block + name, x) for name in names["qkv"]], -1), 3, -1
        )
        heads = lambda x: x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
        score = np.exp(heads(query) @ heads(key).swapaxes(-1, -2) / np.sqrt(DIM / HEADS))
        mixed = score / score.sum(-1, keepdims=True) @ heads(value)
        return linear(block + names["out"], mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    patches = images.reshape(len(images), GRID, PATCH, GRID, PATCH, 3)
    x = np.einsum("bgphqc,dcpq->bghd", patches, t[names["patch"] + ".weight"])
    x = x.reshape(len(images), -1, DIM) + t.get(names["patch"] + ".bias", 0)
    cls = np.broadcast_to(t[names["cls"]].reshape(1, 1, DIM), (len(images), 1, DIM))
    x = np.concatenate([cls, x], 1) + t[names["pos"]]
    if names.get("pre", "-") + ".weight" in t:
        x = norm(names["pre"], x)
    for n in range(DEPTH):
        block = names["block"].format(n)
        x = x + attention(block, norm(block + names["norm1"], x))
        hidden = ACTIVATIONS[activation](
            linear(block + names["up"], norm(block + names["norm2"], x))
        )
        x = x + linear(block + names["down"], hidden)
    return norm(names["norm"], x[:, 0] if pooling == "token" else x[:, 1:].mean(1))
