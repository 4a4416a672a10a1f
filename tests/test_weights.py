"""Weights in the files of other libraries: features, metadata, and errors for damaged files."""

import json
import struct
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import ml_dtypes
import numpy as np
import pytest
import torch_vit as other
import toy
from safetensors.numpy import save_file

from promptax import UserError, nn
from promptax.core.settings import Normalisation
from promptax.nn.weights import BUNDLED, STATISTICS
from promptax.nn.weights.naming import clip, timm
from promptax.nn.weights.naming.scheme import Scheme

FC_NORM = {**other.TIMM, "norm": "fc_norm"}
KNOWN = nn.Metadata(heads=other.HEADS)
BLOCK = "encoder.layer.1."


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def noise(*names):
    return {name: np.full((3,), np.nan, np.float32) for name in names}


# Names of a family's files, tensors beside the ViT's, and how its features are computed.
FAMILIES = {
    "timm": (other.TIMM, "", noise("head.weight", "head.bias"), {}),
    "dino": (
        other.TIMM,
        "module.backbone.",
        noise("module.head.mlp.0.weight", "module.head.last_layer.weight_g"),
        {},
    ),
    "ibot": (other.TIMM, "backbone.", noise("backbone.masked_embed", "head.mlp2.0.bias"), {}),
    "moco v3": (
        other.TIMM,
        "module.base_encoder.",
        noise("module.momentum_encoder.blocks.0.norm1.bias", "module.predictor.0.weight"),
        {},
    ),
    "mae": (other.TIMM, "", noise("mask_token", "decoder_pos_embed", "decoder_embed.bias"), {}),
    "mae pooled": (FC_NORM, "", noise("head.weight"), {"pooling": "mean"}),
    "timm clip": (
        other.TIMM,
        "",
        noise("head.weight"),
        {"activation": "quick_gelu", "eps": 1e-5},
    ),
    "hugging face": (
        other.HUGGING_FACE,
        "vit.",
        noise("classifier.bias", "vit.pooler.dense.weight", "vit.embeddings.mask_token"),
        {"eps": 1e-12},
    ),
    "hugging face mae": (
        other.HUGGING_FACE,
        "vit.",
        noise("decoder.mask_token", "decoder.decoder_norm.bias"),
        {"eps": 1e-12},
    ),
    "clip": (
        other.CLIP,
        "vision_model.",
        noise("text_model.final_layer_norm.bias", "visual_projection.weight", "logit_scale")
        | {"vision_model.embeddings.position_ids": np.arange(5)[None]},
        {"activation": "quick_gelu", "eps": 1e-5},
    ),
}


def write(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def hf(tmp_path):
    """A Hugging Face ViT as tensors, and a function that writes and reads them."""
    path = tmp_path / "model.safetensors"
    read = lambda tensors, hints=KNOWN: nn.read_weights(write(path, tensors), hints)
    return other.make(other.HUGGING_FACE), read


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_as_numpy_computes_them_from_the_file(family, tmp_path):
    names, prefix, foreign, options = FAMILIES[family]
    tensors = other.make(names, pre="clip" in family)
    path = write(tmp_path / "model.safetensors", prefixed(prefix, tensors) | foreign)
    activation = options.get("activation")
    weights = nn.read_weights(path, replace(KNOWN, activation=activation))
    assert len(weights.dropped) == len(foreign)
    assert all(any(name.endswith(drop) for name in foreign) for drop in weights.dropped)
    vit = weights.build()
    images = np.random.default_rng(1).normal(size=(4, other.IMAGE, other.IMAGE, 3))
    ours = eqx.filter_jit(vit)(jnp.asarray(images, jnp.float32))
    wanted = other.forward(tensors, names, images, **options)
    assert np.abs(wanted - wanted[:1]).max() > 0.1
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
    nn.write_npz(tmp_path / "out.npz", weights)
    again = nn.read_weights(tmp_path / "out.npz")
    assert again.metadata == weights.metadata
    assert again.build().config == vit.config
    assert toy.same_bits(again.build(), vit)


DINO = {"layer_scale": True, "activation": "gelu", "qkv_bias": True}
LAYOUTS: dict[str, tuple[Scheme, dict[str, Any], str]] = {
    "dinov2": (timm.DINOV2, {**DINO, "registers": 2}, "register_tokens"),
    "dinov2 giant": (
        timm.DINOV2_GIANT,
        {**DINO, "registers": 2, "gated_mlp": True, "activation": "silu"},
        "blocks.2.mlp.w12.weight",
    ),
    "dinov3": (
        timm.DINOV3_PLAIN,
        {**DINO, "registers": 2, "positions": "rotary"},
        "storage_tokens",
    ),
    "dinov3 gated": (
        timm.DINOV3,
        {
            **DINO,
            "registers": 2,
            "positions": "rotary",
            "gated_mlp": True,
            "activation": "silu",
        },
        "blocks.2.mlp.w3.bias",
    ),
    "open clip": (
        clip.OPEN_CLIP,
        {"pre_norm": True, "activation": "gelu", "norm_eps": 1e-5},
        "visual.transformer.resblocks.2.attn.in_proj_weight",
    ),
}


@pytest.mark.parametrize("library", LAYOUTS)
def test_the_names_of_the_authors_own_code_are_read(library, tmp_path):
    """Those that no other library has, and which therefore no slow test can compare with one."""
    scheme, options, known = LAYOUTS[library]
    image = 16 if options.get("positions") != "rotary" else 24
    vit = nn.ViT(replace(toy.CONFIG, image=image, **options), key=jr.key(0))
    leaves = {name: np.asarray(leaf) for name, leaf in nn.vit_leaves(vit).items()}
    tensors = {}
    for leaf, stored in scheme._stored(3).items():
        if leaf not in leaves:
            continue
        # Where each number of the tensor goes, from which follows where it comes from.
        shape = stored.layout.shape(leaves[leaf].shape)
        places = stored.layout.read(np.arange(np.prod(shape)).reshape(shape), leaves[leaf].shape)
        part = np.empty(np.prod(shape), np.float32)
        part[places.ravel()] = leaves[leaf].ravel()
        whole = tensors.setdefault(
            stored.name, np.zeros(stored.shape(leaves[leaf].shape), np.float32)
        )
        np.split(whole, stored.parts)[stored.part][...] = part.reshape(shape)
    assert known in tensors
    if "dinov3" in library:
        tensors |= noise("rope_embed.periods", "blocks.0.attn.qkv.bias_mask")
    hints = replace(KNOWN, image=image, activation="gelu" if "clip" in library else None)
    weights = nn.read_weights(write(tmp_path / "model.safetensors", tensors), hints)
    assert weights.config() == replace(vit.config, norm_eps=weights.config().norm_eps)
    built = weights.build()
    assert toy.same_bits(nn.vit_leaves(built), nn.vit_leaves(vit))
    nn.write_npz(tmp_path / "out.npz", weights)
    again = nn.read_weights(tmp_path / "out.npz").build()
    assert again.config == built.config
    assert toy.same_bits(again, built)


@pytest.mark.parametrize("names", [other.CLIP, other.TIMM])
def test_a_clip_that_does_not_say_its_activation_is_asked_for_it(names, tmp_path):
    path = write(tmp_path / "model.safetensors", other.make(names, pre=True))
    with pytest.raises(UserError, match=r"activation=quick_gelu\) or Metadata\(activation=gelu"):
        nn.read_weights(path, KNOWN)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(
            {
                "model_cfg": {"vision_cfg": {"width": 32, "head_width": 8}},
                "preprocess_cfg": {"mean": STATISTICS["clip"][0], "std": STATISTICS["clip"][1]},
            }
        )
    )
    metadata = nn.read_weights(path).metadata
    assert (metadata.activation, metadata.heads, metadata.normalisation) == ("gelu", 4, "clip")


@pytest.mark.parametrize(
    ("tensor", "family"),
    [
        ("blocks.0.attn.relative_position_bias_table", "a BEiT"),
        (
            "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index",
            "a BEiT",
        ),
        ("blocks.0.attn.inner_attn_ln.weight", "an EVA-02"),
        ("visual.blocks.3.mlp.ffn_ln.bias", "an EVA-02"),
        ("blocks.11.mlp.norm.weight", "an EVA-02"),
        ("layers.0.blocks.1.norm1.weight", "a Swin Transformer"),
    ],
)
def test_other_families_are_refused_by_their_name_with_what_to_do(tensor, family, tmp_path):
    tensors = other.make(other.TIMM) | {tensor: np.ones(2, np.float32)}
    with pytest.raises(UserError, match=f"is of {family}.*: take a ViT") as caught:
        nn.read_weights(write(tmp_path / "model.safetensors", tensors), KNOWN)
    assert tensor in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_read_as_float32(dtype, hf):
    tensors, read = hf
    cast = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    exact = {name: tensor.astype(np.float32) for name, tensor in cast.items()}
    assert toy.same_bits(read(cast).build(), read(exact).build())


def test_shards_are_read_as_one(hf, tmp_path):
    tensors, read = hf
    whole = read(tensors).build()
    parts = [dict(list(tensors.items())[n::2]) for n in range(2)]
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = tmp_path / "model.safetensors.index.json"
    for file, part in zip(files, parts, strict=True):
        write(tmp_path / file, part)
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert toy.same_bits(nn.read_weights(index, KNOWN).build(), whole)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors' not found"):
        nn.read_weights(index, KNOWN)
    for listed in ("../model.safetensors", "pytorch_model-1.bin", 1, [], None):
        index.write_text(json.dumps({"weight_map": {"a": listed}}))
        with pytest.raises(UserError, match=r"should list \.safetensors files beside it"):
            nn.read_weights(index, KNOWN)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        index.write_text(content)
        with pytest.raises(UserError, match=r"should list \.safetensors files beside it"):
            nn.read_weights(index, KNOWN)


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def without(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("embeddings.cls_token"), "'embeddings.cls_token' is missing"),
        (
            without("embeddings.patch_embeddings.projection.weight"),
            "'embeddings.patch_embeddings.projection.weight' is missing",
        ),
        (
            without("embeddings.patch_embeddings.projection.bias"),
            "'embeddings.patch_embeddings.projection.bias' is missing",
        ),
        (
            without(BLOCK + "attention.attention.key.bias"),
            "'encoder.layer.1.attention.attention.key.bias' is missing",
        ),
        (
            lambda tensors: tensors.update({BLOCK + "ls1.gamma": np.ones(2, np.float32)}),
            "'encoder.layer.1.ls1.gamma' is not part of a ViT",
        ),
        (
            changed(BLOCK + "output.dense.weight", lambda x: x[:, 1:]),
            r"1.output.dense.weight' should have shape \(32, 48\), but has \(32, 47\)",
        ),
        (
            changed("embeddings.position_embeddings", lambda x: x[:, 1:]),
            "position_embeddings' should hold a class token and a square of patches, but has 4",
        ),
        (
            changed("embeddings.patch_embeddings.projection.weight", lambda x: x[0]),
            "projection.weight' should have 4 axes",
        ),
        (changed("layernorm.bias", lambda x: x.astype(int)), "should hold floats, but has int64"),
        (changed("layernorm.bias", lambda x: x * np.inf), "'layernorm.bias' holds values that"),
        (
            lambda tensors: tensors.update({"vit.layernorm.bias": np.ones(32, np.float32)}),
            "names differ by a prefix only",
        ),
        (
            lambda tensors: tensors.update(
                {"embeddings.distillation_token": np.ones((1, 1, 32), np.float32)}
            ),
            "'embeddings.distillation_token' is of a distilled DeiT",
        ),
    ],
)
def test_a_bad_tensor_is_named_as_the_file_names_it(damage, words, hf):
    tensors, read = hf
    damage(tensors)
    with pytest.raises(UserError, match=words) as caught:
        read(tensors)
    assert str(caught.value).startswith("model.safetensors: ")


def test_a_file_of_another_model_is_refused(hf):
    tensors, read = hf
    for name, words in {
        "conv1.weight": "no leaf has a name of a ViT in timm or Hugging Face",
        "encoder.conv1.weight": r"the first of 1 is 'encoder\.conv1\.weight'",
    }.items():
        with pytest.raises(UserError, match=words):
            read({name: np.ones(2, np.float32)})
    both = other.make(other.TIMM) | {"fc_norm.weight": np.ones(32, np.float32)}
    with pytest.raises(UserError, match=r"'fc_norm\.bias' is missing"):
        read(both)
    with pytest.raises(UserError, match=r"'norm\.bias' is not part of a ViT"):
        read(both | {"fc_norm.bias": np.ones(32, np.float32)})
    with pytest.raises(UserError, match="how many heads a ViT of width 32 has"):
        read(tensors, nn.Metadata())
    with pytest.raises(UserError, match="width 32 is not divisible by 5 heads"):
        read(tensors, nn.Metadata(heads=5))


def header(content, body=b""):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        header(b'{"a": \xff\xfe}'),
        header(b"{}" * 3),
        header({"a": ENTRY}),
        header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
        header({"a": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(8)),
        header({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}, bytes(8)),
    ],
)
def test_a_hostile_header_is_a_user_error(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors' cannot be read as \.safetensors"):
        nn.read_weights(path)


def test_a_truncated_file_is_a_user_error(hf, tmp_path):
    tensors, read = hf
    read(tensors)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut off"):
            nn.read_weights(path)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "x.npz", cls=np.array([Trap()], object))
    with pytest.raises(UserError, match="cannot be read"):
        nn.read_weights(tmp_path / "x.npz")


def timm_config(architecture, tag, scale: Normalisation = "imagenet", **more: Any):
    mean, std = STATISTICS[scale]
    trained = {"tag": tag, "mean": mean, "std": std, "license": "apache-2.0"}
    return {"architecture": architecture, "pretrained_cfg": trained, **more}


HEADS: dict[str, Any] = {"model_args": {"num_heads": other.HEADS}}


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (
            timm_config("vit_base_patch16_224", "augreg2_in21k_ft_in1k", "symmetric", **HEADS),
            {"family": "vit", "normalisation": "symmetric", "licence": "apache-2.0"},
        ),
        (timm_config("vit_base_patch16_224", "mae", **HEADS), {"family": "mae"}),
        (timm_config("vit_base_patch16_224", "dino", **HEADS), {"family": "dino"}),
        (
            timm_config("deit_base_patch16_224", "fb_in1k", **HEADS),
            {"family": "deit", "source": "timm/deit_base_patch16_224.fb_in1k"},
        ),
        (
            timm_config("vit_base_patch16_clip_224", "openai", "clip", **HEADS),
            {"family": "clip", "activation": "quick_gelu", "normalisation": "clip"},
        ),
        (
            timm_config("vit_base_patch16_clip_224", "laion2b", "clip", **HEADS),
            {"family": "clip", "activation": "gelu", "norm_eps": 1e-5},
        ),
    ],
)
def test_the_config_of_timm_is_read(config, known, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = other.make(other.TIMM, pre="clip" in config["architecture"])
    metadata = nn.read_weights(write(tmp_path / "model.safetensors", tensors)).metadata
    assert {name: getattr(metadata, name) for name in known} == known
    assert metadata.activation == known.get("activation", "gelu")


@pytest.mark.parametrize(
    ("config", "images", "known"),
    [
        (
            {"model_type": "vit", "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {"activation": "gelu_tanh", "norm_eps": 1e-3, "normalisation": "symmetric"},
        ),
        (
            {"model_type": "vit_mae", "hidden_act": "gelu"},
            {},
            {"family": "mae", "norm_eps": 1e-12, "normalisation": "imagenet"},
        ),
        (
            {"model_type": "vit"},
            {"image_mean": [0.1] * 3, "image_std": [0.5] * 3},
            {"family": None, "activation": "gelu", "normalisation": None},
        ),
    ],
)
def test_the_configs_of_hugging_face_are_read(config, images, known, hf, tmp_path):
    tensors, read = hf
    config = config | {"num_attention_heads": other.HEADS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    metadata = read(tensors, nn.Metadata()).metadata
    assert {name: getattr(metadata, name) for name in known} == known
    said = nn.Metadata(activation="quick_gelu", norm_eps=0.1, normalisation="unit", heads=8)
    assert said.filled_from(metadata) == read(tensors, said).metadata


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "should hold a JSON object, but holds list"),
        ('{"model_type": "vit", "hidden_act": "relu"}', "unknown activation 'relu'"),
        ('{"model_type": "vit", "layer_norm_eps": "x"}', "not as timm or transformers write"),
        ('{"model_type": []}', "not as timm or transformers write it"),
        ('{"architecture": 3}', "not as timm or transformers write it"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(config, words, hf, tmp_path):
    tensors, read = hf
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=words) as caught:
        read(tensors)
    assert "config.json" in str(caught.value)


def test_a_config_of_something_else_says_nothing(hf, tmp_path):
    tensors, read = hf
    (tmp_path / "config.json").write_text('{"schema": 1}')
    assert read(tensors).metadata == nn.Metadata(activation="gelu", norm_eps=1e-12, heads=4)


def test_weights_of_the_package_say_what_they_are():
    facts = nn.read_weights("glyph-vit").facts()
    assert (facts["licence"], facts["normalisation"]) == ("Apache-2.0", "unit")
    assert facts["source"] == BUNDLED["glyph-vit"].metadata.source


@pytest.mark.parametrize("stored", ["{", "[]", '{"colour": "red"}', '{"activation": "relu"}'])
def test_damaged_metadata_is_a_user_error(stored, tiny, tmp_path):
    np.savez(tmp_path / "x.npz", **{**np.load(tiny.weights), "promptax.json": np.array(stored)})
    with pytest.raises(UserError, match=r"'promptax\.json' is not as this version"):
        nn.read_weights(tmp_path / "x.npz")
