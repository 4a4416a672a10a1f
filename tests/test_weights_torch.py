"""Features of converted weights against those that timm and transformers compute."""

import subprocess
import sys
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from others import import_timm

from promptax import UserError, nn
from promptax.nn.weights import resize_position
from promptax.nn.weights.torch import PICKLE_TO_SAFETENSORS

pytestmark = [
    pytest.mark.slow,
    # What the other libraries warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
]
SIZE: dict[str, Any] = {"patch_size": 16, "depth": 3}
NARROW = {"embed_dim": 192, "num_heads": 3}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_base_patch16_224", NARROW),
    "deit": ("deit_base_patch16_224", NARROW),
    "mae": ("vit_base_patch16_224", {**NARROW, "global_pool": "avg"}),
    "dino": ("vit_small_patch16_224", {"embed_dim": 384, "num_heads": 6, "num_classes": 0}),
    "clip": ("vit_base_patch16_clip_224", NARROW),
    "clip quick": ("vit_base_patch16_clip_quickgelu_224", NARROW),
    "deit3": ("deit3_base_patch16_224", NARROW),
    "dinov2": ("vit_base_patch14_dinov2", {**NARROW, "patch_size": 14}),
    "dinov2 registers": ("vit_base_patch14_reg4_dinov2", {**NARROW, "patch_size": 14}),
    "dinov2 giant": ("vit_giant_patch14_dinov2", {**NARROW, "patch_size": 14}),
    "dinov3": ("vit_base_patch16_dinov3", {**NARROW, "global_pool": "token"}),
    "dinov3 bias": ("vit_base_patch16_dinov3_qkvb", {**NARROW, "global_pool": "token"}),
    "dinov3 gated": ("vit_huge_plus_patch16_dinov3", {**NARROW, "global_pool": "token"}),
    "siglip": ("vit_base_patch16_siglip_224", NARROW),
    "siglip mean": ("vit_base_patch16_siglip_gap_224", NARROW),
    "normalised heads": ("vit_base_patch16_224", {**NARROW, "qk_norm": True, "qkv_bias": False}),
}
WIDTH = {"hidden_size": 48, "num_attention_heads": 4}
HUGGING_FACE: dict[str, Any] = {**WIDTH, "num_hidden_layers": 3, "patch_size": 8}
HF_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", {}),
    "vit classifier": ("ViTForImageClassification", "ViTConfig", {"hidden_act": "gelu_new"}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}),
    "mae pretraining": ("ViTMAEForPreTraining", "ViTMAEConfig", {"mask_ratio": 0.0}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "clip gelu": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"hidden_act": "gelu"}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2 giant": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "dinov2 without biases": ("Dinov2Model", "Dinov2Config", {"qkv_bias": False}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}),
    "dinov3 gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
}


@pytest.fixture(autouse=True)
def seeded():
    pytest.importorskip("torch").manual_seed(0)


def randomise(model):
    """Every parameter random, biases and norms too, and large enough for every term to count."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.add_(noise / max(fan_in, 1) ** 0.5)
    return model.eval()


def draw(size):
    return np.random.default_rng(1).uniform(-2, 2, (4, size, size, 3)).astype(np.float32)


def compare(label, vit, images, theirs):
    """Compare the features, and the tokens after the final LayerNorm where `theirs` has them."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        answers = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    x = jnp.asarray(images)
    tokens = lambda vit, x: vit.encode(vit.tokens(vit.patches(x)))
    ours = (eqx.filter_jit(vit)(x), eqx.filter_jit(tokens)(vit, x))
    for kind, mine, wanted in zip(("features", "tokens"), ours, answers, strict=True):
        if wanted is None:
            continue
        wanted = wanted.numpy()
        assert np.abs(wanted).max() > 0.5
        assert np.abs(wanted - wanted[:1]).max() > 0.1  # images differ
        print(f"{label}, {kind}: {np.abs(mine - wanted).max():.1e} of {np.abs(wanted).max():.2f}")
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)


def timm_answers(model):
    def answers(images):
        tokens = model.forward_features(images)
        # Where the final LayerNorm comes after pooling, the tokens are before it.
        has_norm = type(model.norm).__name__ != "Identity"
        return model.forward_head(tokens, pre_logits=True), tokens if has_norm else None

    return answers


@pytest.mark.parametrize("family", TIMM)
def test_features_are_those_of_timm_at_two_sizes(family, tmp_path):
    timm, hub = import_timm(), pytest.importorskip("timm.models")
    name, options = TIMM[family]
    settings = {**SIZE, **options}
    patch = settings["patch_size"]
    model = randomise(timm.create_model(name, **settings, img_size=3 * patch))
    hub.save_for_hf(
        model, tmp_path, safe_serialization=True, model_args={**options, "img_size": 3 * patch}
    )
    weights = nn.read_weights(tmp_path / "model.safetensors")
    assert weights.config().image == 3 * patch
    compare(f"timm {family}", weights.build(), draw(3 * patch), timm_answers(model))
    # timm resizes all models in one way, whatever their owners do.
    hints = nn.Metadata(resize="bicubic_antialias")
    model.set_input_size(img_size=5 * patch)
    vit = nn.read_weights(tmp_path / "model.safetensors", hints).build(5 * patch)
    compare(f"timm {family}, larger", vit, draw(5 * patch), timm_answers(model))
    nn.write_npz(tmp_path / "out.npz", weights)
    again = nn.read_weights(tmp_path / "out.npz")
    assert again.metadata == weights.metadata
    assert again.build().config == weights.build().config
    assert eqx.tree_equal(again.build(), weights.build()) == True  # noqa: E712 (an array)


def hugging_face(family, image=24):
    transformers = pytest.importorskip("transformers")
    model, config, options = {
        **HF_FAMILIES,
        "deit": ("DeiTModel", "DeiTConfig", {}),
    }[family]
    width = {} if "dinov2" in family else {"intermediate_size": 96}
    settings = getattr(transformers, config)(**HUGGING_FACE, **width, **options, image_size=image)
    return randomise(getattr(transformers, model)(settings))


RESIZED = {
    "vit": {"interpolate_pos_encoding": True},
    "clip": {"interpolate_pos_encoding": True},
    "siglip": {"interpolate_pos_encoding": True},
    "dinov2": {},
    "dinov2 giant": {},
    "dinov2 registers": {},
    "dinov2 without biases": {},
    "dinov3": {},
    "dinov3 gated": {},
}
"""What transformers has to be told for images of another size, where it can do them."""


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_features_are_those_of_transformers_at_two_sizes(family, tmp_path):
    model = hugging_face(family)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tower = getattr(model, "vit", getattr(model, "vision_model", model))

    def theirs(images, **options):
        out = tower(images, **options)
        if family.startswith(("clip", "siglip")):
            # transformers does not apply the final LayerNorm to the tokens of a CLIP.
            return out.pooler_output, out.last_hidden_state if "siglip" in family else None
        # A MAE shuffles the patches, so that only its class token can be compared.
        tokens = None if family.startswith("mae") else out.last_hidden_state
        return out.last_hidden_state[:, 0], tokens

    compare(f"transformers {family}", nn.load_vit(file), draw(24), theirs)
    if family not in RESIZED:
        return
    hints = nn.Metadata()
    if family in ("vit", "clip", "siglip"):
        # transformers resizes these in another way than their owners.
        hints = nn.Metadata(resize="bicubic")
    vit = nn.read_weights(file, hints).build(40)
    options = RESIZED[family]
    compare(
        f"transformers {family}, larger", vit, draw(40), lambda images: theirs(images, **options)
    )


@pytest.mark.parametrize(("old", "new"), [(37, 16), (37, 8), (16, 7), (7, 16), (14, 24)])
def test_position_embeddings_are_resized_as_timm_and_transformers_do(old, new):
    torch, _ = pytest.importorskip("torch"), import_timm()
    layers = pytest.importorskip("timm.layers")
    position = np.random.default_rng(0).normal(size=(1, 1 + old**2, 8)).astype(np.float32)
    resized = {
        method: resize_position(position, 1 + new**2, method=method)
        for method in ("bilinear", "bicubic", "bicubic_antialias")
    }
    wanted = layers.resample_abs_pos_embed(torch.from_numpy(position), [new, new])
    np.testing.assert_allclose(resized["bicubic_antialias"], wanted, atol=1e-4)
    transformers = pytest.importorskip("transformers")
    for prefix, method in (("Dinov2", "bicubic"), ("Dinov2WithRegisters", "bicubic_antialias")):
        config = getattr(transformers, f"{prefix}Config")(
            hidden_size=8, num_attention_heads=2, num_hidden_layers=1, image_size=old, patch_size=1
        )
        embeddings = getattr(transformers, f"{prefix}Model")(config).embeddings
        embeddings.position_embeddings.data = torch.from_numpy(position)
        with torch.no_grad():
            wanted = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + new**2, 8), new, new)
        np.testing.assert_allclose(resized[method], wanted, atol=1e-4)
    # As the code of Google's ViTs in JAX does: bilinear, with the centres of pixels aligned.
    grid = torch.from_numpy(position[:, 1:].reshape(1, old, old, 8).transpose(0, 3, 1, 2).copy())
    linear = torch.nn.functional.interpolate(grid, (new, new), mode="bilinear", antialias=True)
    linear = linear.numpy().transpose(0, 2, 3, 1).reshape(1, new**2, 8)
    np.testing.assert_allclose(resized["bilinear"][:, 1:], linear, atol=1e-4)


def test_shards_give_the_same_vit_as_one_file(tmp_path):
    model = hugging_face("vit")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    one = nn.load_vit(tmp_path / "one" / "model.safetensors")
    many = nn.load_vit(tmp_path / "many" / "model.safetensors.index.json")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert eqx.tree_equal(one, many) == True  # noqa: E712 (an array)


def test_a_distilled_deit_is_refused(tmp_path):
    hugging_face("deit").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="distilled DeiT, whose features are two tokens"):
        nn.load_vit(tmp_path / "model.safetensors")
    timm, hub = import_timm(), pytest.importorskip("timm.models")
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32)
    hub.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(UserError, match="'dist_token' is of a distilled DeiT"):
        nn.load_vit(tmp_path / "model.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [None, "model", "state_dict", "teacher"])
def test_the_files_of_pytorch_are_read_without_it_and_the_advice_works(legacy, nested, tmp_path):
    torch, timm = pytest.importorskip("torch"), import_timm()
    model = randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1))
    state = {nested: model.state_dict()} if nested else model.state_dict()
    path = tmp_path / "anything.npz"  # told by content
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", PICKLE_TO_SAFETENSORS, path, out], check=True)
    assert nn.load_vit(out).config.dim == 192
    assert eqx.tree_equal(nn.load_vit(path), nn.load_vit(out)) == True  # noqa: E712 (an array)
