"""`promptax weights convert`, `inspect` and `list`, and runs on converted weights."""

import hashlib
import json

import pytest
import torch_vit as other
import toy
from safetensors.numpy import save_file

from promptax import nn
from promptax.cli import main
from promptax.nn.weights.catalogue import CATALOGUE
from promptax.runs.experiment import Backbone


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The working directory, with a CLIP in it."""
    monkeypatch.chdir(tmp_path)
    save_file(other.make(other.CLIP, pre=True), "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip_vision_model", "num_attention_heads": 4})
    )
    return tmp_path


def answer(capsys, line):
    assert main(line.split()) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys, line):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_converted_weights_are_the_same_vit_and_say_what_they_are(model, capsys):
    said = answer(capsys, "weights convert model.safetensors out.npz --licence MIT")
    assert "family         clip" in said
    assert "activation quick_gelu" in said
    assert "train with     --weights out.npz --images.size 16" in said
    original, converted = nn.read_weights("model.safetensors"), nn.read_weights("out.npz")
    assert toy.same_bits(original.build(), converted.build())
    assert original.config() == converted.config()
    assert converted.metadata.licence == "MIT"
    assert converted.metadata.source == f"model.safetensors (sha256 {original.sha256})"
    shown = answer(capsys, "weights inspect out.npz")
    assert shown == said
    assert converted.sha256 in shown


def test_flags_go_before_what_files_say(model, capsys):
    answer(
        capsys,
        "weights convert model.safetensors out.npz --activation gelu --norm-eps 1e-4 "
        "--pooling mean --normalisation imagenet --heads 8 --source somewhere",
    )
    config = nn.read_weights("out.npz").config()
    chosen = (config.activation, config.norm_eps, config.pooling, config.heads, config.pre_norm)
    assert chosen == ("gelu", 1e-4, "mean", 8, True)
    assert nn.read_weights("out.npz").facts()["source"] == "somewhere"


def test_nothing_is_overwritten_or_left_behind(model, capsys):
    (model / "mine.npz").write_text("dear")
    convert = "weights convert model.safetensors"
    assert "'mine.npz' exists" in refusal(capsys, f"{convert} mine.npz")
    assert "should be the name of a .npz file" in refusal(capsys, f"{convert} out.safetensors")
    assert "cannot be written" in refusal(capsys, f"{convert} none/out.npz")
    before = sorted(path.name for path in model.iterdir())
    assert (model / "mine.npz").read_text() == "dear"
    answer(capsys, f"{convert} mine.npz --overwrite")
    assert sorted(path.name for path in model.iterdir()) == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("weights", "Expected one of convert, fetch, inspect, list"),
        ("weights inspect", "Missing"),
        ("weights fetch", "Missing"),
        (
            "weights fetch vit_base_patch16_225.mae",
            "unknown mean 'vit_base_patch16_224.mae'",
        ),
        ("weights fetch vit_base_patch16_224", "which weights you mean vit_base_patch16_224.dino"),
        ("weights inspect vit_base_patch16_224", "which weights you mean"),
        ("weights inspect none.npz", "'none.npz' not found .safetensors glyph-vit"),
        ("weights inspect config.json", "'config.json' cannot be read"),
        ("weights convert model.safetensors x.npz --family vgg", "vgg clip"),
        ("weights convert model.safetensors x.npz --norm-eps 0", "norm eps 0.0 above 0"),
        ("weights convert model.safetensors x.npz --heads 5", "width 32 5 heads"),
        ("weights convert model.safetensors x.npz --heads 0", "heads 0 at least 1"),
    ],
)
def test_a_mistake_is_answered_in_a_line(line, words, model, capsys):
    err = refusal(capsys, line)
    assert [word for word in words.split() if word not in err] == [], err
    assert not (model / "x.npz").exists()


def test_the_list_names_what_comes_with_the_package_and_what_is_public(capsys):
    out = answer(capsys, "weights list")
    assert out.startswith("glyph-vit: comes with the package")
    assert all(tag in out for tag in CATALOGUE)


def test_inspect_says_the_normalisation_of_weights_that_it_knows(capsys):
    out = answer(capsys, "weights inspect glyph-vit")
    assert "--weights glyph-vit --images.size 32 --images.normalisation unit" in out
    assert "parameters     1,273,440" in out


def test_what_is_not_known_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(other.make(other.TIMM), "model.safetensors")
    out = answer(capsys, "weights inspect model.safetensors --heads 4")
    assert "family         not known: say it with --family" in out
    assert "normalisation  not known: say it with --normalisation" in out
    assert "--images.normalisation" not in out
    out = answer(capsys, "weights inspect model.safetensors --heads 4 --family mae")
    assert "imagenet: (pixel / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)" in out


def test_a_result_says_where_its_weights_are_from(model, capsys):
    answer(capsys, "weights convert model.safetensors out.npz --licence MIT")
    vit, facts = Backbone("out.npz").load(32)
    assert isinstance(vit, nn.ViT)
    assert vit.config.grid == 4
    assert json.loads(json.dumps(facts)) == facts
    assert facts.pop("metadata") == nn.read_weights("out.npz").metadata.known()
    assert facts.pop("images") == {"size": 16, "normalisation": "clip"}
    assert facts == {
        "name": "out.npz",
        "sha256": hashlib.sha256((model / "out.npz").read_bytes()).hexdigest(),
        "family": "clip",
        "source": f"model.safetensors (sha256 {nn.read_weights('model.safetensors').sha256})",
        "licence": "MIT",
        "normalisation": "clip",
        "dropped": [],
    }
