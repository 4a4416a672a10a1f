"""Weights by their tags: the catalogue, downloads from a hub on the loopback, and the cache."""

import hashlib
import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch_vit as other
import toy
from safetensors.numpy import save
from torch_file import archive, dictionary, state
from webserver import serve

from promptax import UserError, nn
from promptax.cli import main
from promptax.core.settings import STATISTICS
from promptax.data.fetch import Patience
from promptax.nn.weights.cache import own_path, weights_dir
from promptax.nn.weights.catalogue import CATALOGUE, entry_of
from promptax.nn.weights.fetch import RECORD, address_of, fetch_weights
from promptax.nn.weights.metadata import FAMILIES
from promptax.nn.weights.naming.scheme import HEADS
from promptax.runs.inputs import Backbone

TAG = "vit_tiny_patch16_224.augreg_in21k"
PICKLE = "vit_base_patch16_224.ibot_in1k"
ON_HUB = f"/timm/{TAG}/resolve/main/model.safetensors"
ON_CDN = "/cdn/5f3a?signature=1"
HURRY = Patience(timeout=5.0, attempts=3, backoff=0.0)
VARIABLES = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty weights folder and Hugging Face home, and no settings of the user's."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PROMPTAX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    # Of the width of a published size, by which the heads are known.
    monkeypatch.setattr(other, "DIM", 192)
    shape = {"dim": other.DIM, "depth": other.DEPTH, "patch": other.PATCH, "image": other.IMAGE}
    for tag in (TAG, PICKLE):
        monkeypatch.setitem(CATALOGUE, tag, replace(CATALOGUE[tag], **shape))
    return tmp_path


@pytest.fixture
def content():
    """The file of a ViT as timm publishes it."""
    return save(other.make(other.TIMM))


@pytest.fixture
def hub(content, monkeypatch):
    """A hub that redirects to another address, as Hugging Face does for large files."""
    with serve({ON_CDN: content}, redirects={ON_HUB: ON_CDN}) as web:
        monkeypatch.setenv("HF_ENDPOINT", f"{web.url}/")
        yield web


def fetch(tag=TAG, **options):
    return fetch_weights(tag, patience=HURRY, **options)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- from the hub to a backbone ---------------------------------------------------------------


def test_weights_are_fetched_once_and_then_found_by_their_tag(hub, content):
    fetched = fetch()
    assert fetched.path == own_path(entry_of(TAG))
    assert fetched.path.read_bytes() == content
    assert fetched.sha256 == hashlib.sha256(content).hexdigest()
    assert json.loads((fetched.path.parent / RECORD).read_text()) == {
        "url": hub.url + ON_HUB,
        "size": len(content),
        "sha256": fetched.sha256,
    }
    assert fetch() == fetched
    assert [path for path, _ in hub.asked] == [ON_HUB, ON_CDN]
    assert names(fetched.path.parent) == ["fetched.json", "model.safetensors"]
    assert toy.same_bits(nn.load_vit(TAG), nn.load_vit(fetched.path))


def test_what_the_file_does_not_show_comes_from_the_catalogue(hub):
    fetch()
    weights = nn.read_weights(TAG)
    assert weights.metadata == CATALOGUE[TAG].metadata().filled_from_family()
    assert weights.config().activation == "gelu"
    assert nn.read_weights(TAG, nn.Metadata(activation="quick_gelu")).config().activation == (
        "quick_gelu"
    )


def test_a_result_names_the_tag(hub):
    sha256 = fetch().sha256
    vit, facts = Backbone(TAG).load(other.IMAGE)
    assert vit.dim == 192
    assert (facts["name"], facts["sha256"]) == (TAG, sha256)
    assert (facts["source"], facts["normalisation"]) == (f"timm/{TAG}", "symmetric")


def test_a_cut_connection_goes_on_where_it_ended(hub):
    hub.cuts = [20_000]
    fetch()
    rest = "bytes=20000-"
    assert hub.asked == [(ON_HUB, ""), (ON_CDN, ""), (ON_HUB, rest), (ON_CDN, rest)]


def test_the_command_fetches_and_the_list_shows_it(hub, capsys):
    assert main(["weights", "fetch", TAG]) == 0
    out = capsys.readouterr().out
    assert "Licence: Apache-2.0" in out
    assert f"--weights {TAG} --images.size {other.IMAGE} --images.normalisation symmetric" in out
    assert main(["weights", "list"]) == 0
    state = {
        line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line
    }
    assert (state[TAG], state["vit_base_patch16_224.mae"]) == ("here", "-")
    assert main(["weights", "inspect", TAG]) == 0
    assert f"source         timm/{TAG}" in capsys.readouterr().out


# --- the user's settings of the hub -----------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_the_token_goes_to_the_hub_and_no_further(stored, hub, home, monkeypatch):
    if stored:
        put(home / "huggingface" / "token", b"secret\n")
    else:
        monkeypatch.setenv("HF_TOKEN", "secret")
    fetch()
    assert hub.tokens == ["Bearer secret", ""]


def test_other_servers_never_see_the_token(content, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serve({"/bucket/ViT.safetensors": content}) as web:
        entry = replace(CATALOGUE[TAG], url=f"{web.url}/bucket/ViT.safetensors")
        monkeypatch.setitem(CATALOGUE, TAG, entry)
        assert fetch().path.name == "ViT.safetensors"
        assert web.tokens == [""]


def test_a_copy_in_the_cache_of_the_hub_is_used(content, home):
    folder = home / "huggingface" / "hub" / f"models--timm--{TAG}"
    put(folder / "refs" / "main", b"5f3a")
    path = put(folder / "snapshots" / "5f3a" / "model.safetensors", content)
    assert fetch(offline=True).path == path
    assert nn.read_weights(TAG).name == TAG
    assert not weights_dir().exists()


def test_a_pytorch_file_is_fetched_and_read(monkeypatch, home):
    pickled, storages = state(other.make(other.TIMM))
    whole = archive(home / "made.pth", dictionary(state_dict=pickled), storages).read_bytes()
    with serve({"/ibot/checkpoint_teacher.pth": whole}) as web:
        entry = replace(CATALOGUE[PICKLE], url=f"{web.url}/ibot/checkpoint_teacher.pth")
        monkeypatch.setitem(CATALOGUE, PICKLE, entry)
        assert fetch(PICKLE).path.name == "checkpoint_teacher.pth"
    assert nn.read_weights(PICKLE).metadata.family == "ibot"


@pytest.mark.parametrize("variable", [False, True])
def test_offline_says_how_to_bring_the_file(variable, hub, content, monkeypatch):
    if variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    target = own_path(entry_of(TAG))
    with pytest.raises(UserError, match="network is not to be used") as caught:
        fetch(offline=not variable)
    assert hub.url + ON_HUB in str(caught.value)
    assert f"put it at '{target}'" in str(caught.value)
    put(target, content)
    assert fetch(offline=not variable).path == target
    assert hub.asked == []


# --- what a server can send -------------------------------------------------------------------


def deeper():
    """A file of a ViT of one block more."""
    tensors = other.make(other.TIMM)
    for name, tensor in list(tensors.items()):
        if name.startswith("blocks.0."):
            tensors[name.replace("blocks.0.", f"blocks.{other.DEPTH}.")] = tensor
    return save(tensors)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"<html>sign in</html>", r"cannot be read.*login page of a network"),
        (lambda content: content[: len(content) // 2], "cut off"),
        (lambda content: b"", "cannot be read"),
        (lambda content: deeper(), r"holds a ViT of .*'depth': 3.* has .*'depth': 2"),
        (lambda content: save({"conv1.weight": np.ones(2)}), "no leaf has a name of a ViT"),
    ],
)
def test_what_is_not_the_file_is_set_aside(damage, words, hub, content):
    hub.files[ON_CDN] = damage(content)
    with pytest.raises(UserError, match=f"did not send the weights of '{TAG}'") as caught:
        fetch()
    assert re.search(words, str(caught.value))
    target = own_path(entry_of(TAG))
    assert names(target.parent) == ["model.safetensors.wrong"]
    with pytest.raises(UserError, match=f"run `promptax weights fetch {TAG}`"):
        nn.read_weights(TAG)
    hub.files[ON_CDN] = content
    assert fetch().path == target


def test_a_published_digest_is_checked(hub, content, monkeypatch):
    entry = replace(CATALOGUE[TAG], sha256="0" * 64)
    monkeypatch.setitem(CATALOGUE, TAG, entry)
    with pytest.raises(UserError, match="wrong checksum"):
        fetch()
    put(own_path(entry), content)
    with pytest.raises(UserError, match=f"expected {'0' * 64}"):
        fetch()
    right = replace(entry, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(CATALOGUE, TAG, right)
    assert fetch().sha256 == right.sha256


def test_a_file_that_changed_after_the_download_is_told(hub, content):
    path = fetch().path
    tensors = other.make(other.TIMM)
    tensors["cls_token"] += 1
    path.write_bytes(save(tensors))
    with pytest.raises(UserError, match="has changed since it was downloaded"):
        fetch()
    path.unlink()
    assert fetch().path.read_bytes() == content


def test_a_missing_file_says_where_to_put_one(hub):
    hub.redirects.clear()
    with pytest.raises(UserError, match="404") as caught:
        fetch()
    assert f"put it into '{own_path(entry_of(TAG)).parent}'" in str(caught.value)
    assert len(hub.asked) == 1


def test_without_a_network_the_file_can_be_brought_by_hand(content, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        target = own_path(entry_of(TAG))
        with pytest.raises(UserError, match="refused") as caught:
            fetch()
        assert f"or put 'model.safetensors' into '{target.parent}' yourself" in str(caught.value)
        put(target, content)
        assert fetch().path == target


def test_a_full_disk_is_told(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(UserError, match="make room"):
        fetch()


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [fetch, nn.read_weights, nn.read_backbone, nn.load_vit])
def test_a_name_whose_meaning_changed_is_refused_with_the_candidates(use):
    with pytest.raises(UserError, match="say which weights you mean") as caught:
        use("vit_base_patch16_224")
    for recipe in ("orig_in21k", "augreg_in21k", "augreg2_in21k_ft_in1k", "mae", "dino"):
        assert f"vit_base_patch16_224.{recipe}" in str(caught.value)
    assert "vit_base_patch32_224" not in str(caught.value)


@pytest.mark.parametrize("use", [fetch, nn.read_weights])
def test_an_unknown_tag_is_answered_with_the_nearest(use):
    with pytest.raises(UserError, match=r"Did you mean .*'vit_base_patch16_224\.augreg_in21k'"):
        use("vit_base_patch16_224.augreg_21k")
    with pytest.raises(UserError, match="promptax weights") as caught:
        use("zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("use", [fetch, nn.read_weights])
@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("deit_base_distilled_patch16_224.fb_in1k", "a distilled DeiT"),
        ("eva02_base_patch14_224.mim_in22k", "an EVA-02"),
        ("beit_base_patch16_224.in22k_ft_in22k", "a BEiT"),
        ("beitv2_base_patch16_224.in1k_ft_in22k", "a BEiT"),
        ("swin_base_patch4_window7_224.ms_in22k", "a Swin Transformer"),
        ("convnext_base.fb_in22k", "a convolutional network, which has no tokens"),
    ],
)
def test_a_family_that_is_not_supported_is_refused_with_the_reason(use, tag, reason):
    with pytest.raises(UserError, match=f"is {reason}.*cannot compute it"):
        use(tag)


def test_a_tag_that_is_not_here_says_how_to_fetch_it():
    with pytest.raises(UserError, match=f"run `promptax weights fetch {TAG}`"):
        nn.load_vit(TAG)


def test_a_file_of_the_users_goes_before_a_tag(hub, home, monkeypatch):
    monkeypatch.chdir(home)
    vit = toy.make_vit()
    leaves = {name: np.asarray(leaf) for name, leaf in nn.vit_leaves(vit).items()}
    toy_weights = nn.Weights(TAG, "", leaves, ())
    nn.write_npz(home / "mine.npz", toy_weights)
    (home / "mine.npz").rename(home / TAG)
    assert toy.same_bits(nn.load_vit(TAG), vit)


def test_a_weights_folder_that_is_a_file_is_told(home, monkeypatch):
    monkeypatch.setenv("PROMPTAX_WEIGHTS", str(put(home / "notes", b"")))
    with pytest.raises(UserError, match=r"notes' is a file: set PROMPTAX_WEIGHTS"):
        fetch()


@pytest.mark.parametrize("tag", CATALOGUE)
def test_an_entry_is_fit_to_be_used(tag):
    entry = CATALOGUE[tag]
    assert entry.tag == tag
    assert entry.architecture != tag
    assert entry.licence
    assert entry.trained_on
    assert entry.normalisation in STATISTICS
    assert entry.dim in HEADS
    assert entry.image % entry.patch == 0
    assert re.fullmatch(
        r"https://[\w.-]+/[\w./-]+\.(safetensors|npz|pth|pth\.tar)", address_of(entry)
    )
    if entry.sha256 is not None:
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    # A family has one epsilon, which the catalogue therefore leaves to it.
    assert entry.metadata().filled_from_family().norm_eps == FAMILIES[entry.family].norm_eps
