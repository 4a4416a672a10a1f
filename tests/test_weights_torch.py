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
from promptax.nn.weights.read import PICKLE_TO_SAFETENSORS

pytestmark = [
    pytest.mark.slow,
    # What the other libraries warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
]
SIZE: dict[str, Any] = {"img_size": 48, "patch_size": 16, "depth": 3}
TIMM = {
    "vit": ("vit_base_patch16_224", {"embed_dim": 192, "num_heads": 3}),
    "deit": ("deit_base_patch16_224", {"embed_dim": 192, "num_heads": 3}),
    "mae": ("vit_base_patch16_224", {"embed_dim": 192, "num_heads": 3, "global_pool": "avg"}),
    "dino": ("vit_small_patch16_224", {"embed_dim": 384, "num_heads": 6, "num_classes": 0}),
    "clip": ("vit_base_patch16_clip_224", {"embed_dim": 192, "num_heads": 3}),
    "clip quick": ("vit_base_patch16_clip_quickgelu_224", {"embed_dim": 192, "num_heads": 3}),
}
WIDTH = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
HUGGING_FACE: dict[str, Any] = {**WIDTH, "num_hidden_layers": 3, "image_size": 24, "patch_size": 8}


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
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = np.asarray(eqx.filter_jit(vit)(jnp.asarray(images)))
    assert np.abs(wanted).max() > 0.5
    assert np.abs(wanted - wanted[:1]).max() > 0.1  # images differ
    print(f"{label}: {np.abs(ours - wanted).max():.1e} of {np.abs(wanted).max():.2f}")
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", TIMM)
def test_features_are_those_of_timm(family, tmp_path):
    timm, hub = import_timm(), pytest.importorskip("timm.models")
    name, options = TIMM[family]
    model = randomise(timm.create_model(name, **SIZE, **options))
    hub.save_for_hf(model, tmp_path, safe_serialization=True)
    vit = nn.load_vit(tmp_path / "model.safetensors")
    theirs = lambda images: model.forward_head(model.forward_features(images), pre_logits=True)
    compare(f"timm {family}", vit, draw(48), theirs)


def hugging_face(family):
    transformers = pytest.importorskip("transformers")
    model, config, options = {
        "vit": ("ViTModel", "ViTConfig", {}),
        "vit classifier": ("ViTForImageClassification", "ViTConfig", {"hidden_act": "gelu_new"}),
        "mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}),
        "mae pretraining": ("ViTMAEForPreTraining", "ViTMAEConfig", {"mask_ratio": 0.0}),
        "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
        "clip gelu": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"hidden_act": "gelu"}),
        "deit": ("DeiTModel", "DeiTConfig", {}),
    }[family]
    settings = getattr(transformers, config)(**HUGGING_FACE, **options)
    return randomise(getattr(transformers, model)(settings))


@pytest.mark.parametrize(
    "family", ["vit", "vit classifier", "mae", "mae pretraining", "clip", "clip gelu"]
)
def test_features_are_those_of_transformers(family, tmp_path):
    model = hugging_face(family)
    model.save_pretrained(tmp_path)
    vit = nn.load_vit(tmp_path / "model.safetensors")
    tower = getattr(model, "vit", getattr(model, "vision_model", model))

    def theirs(images):
        out = tower(images)
        return out.pooler_output if "clip" in family else out.last_hidden_state[:, 0]

    compare(f"transformers {family}", vit, draw(24), theirs)


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
@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_pickles_are_refused_and_the_advice_works(legacy, nested, tmp_path):
    torch, timm = pytest.importorskip("torch"), import_timm()
    model = randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1))
    state = {nested: model.state_dict()} if nested else model.state_dict()
    path = tmp_path / "anything.npz"  # told by content
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="PyTorch pickle") as refused:
        nn.load_vit(path)
    assert PICKLE_TO_SAFETENSORS in str(refused.value)
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", PICKLE_TO_SAFETENSORS, path, out], check=True)
    assert nn.load_vit(out).config.dim == 192
