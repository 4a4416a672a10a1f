"""`promptax train --fetch`: what it downloads before it trains."""

import pytest

from promptax.cli import fetching
from promptax.cli.data import fetch as fetch_data
from promptax.runs.inputs import Data


@pytest.fixture
def asked(monkeypatch):
    """What was asked for, in order; nothing is downloaded."""
    asked = []
    monkeypatch.setattr(fetch_data, "run", lambda argv: asked.append(argv))
    monkeypatch.setattr(fetching, "fetch_weights", lambda tag: asked.append(tag))
    return asked


def test_sets_that_are_not_prepared_are_fetched_and_prepared(asked, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "meta.json").write_text("{}")
    fetching.fetch_missing_data(Data("five-datasets", dir=tmp_path))
    folder = ["--data-dir", str(tmp_path)]
    names = ("cifar10", "svhn", "notmnist", "fashion-mnist")
    assert asked == [[name, "--prepare", *folder] for name in names]


def test_what_comes_with_the_package_or_from_the_user_is_not_fetched(asked, tmp_path):
    fetching.fetch_missing_data(Data())
    fetching.fetch_missing_data(Data("split-cifar100", train=tmp_path / "x.npz"))
    fetching.fetch_missing_data(Data("a-set-of-my-own"))
    fetching.fetch_missing_weights("glyph-vit")
    fetching.fetch_missing_weights("some/file.npz")
    assert asked == []


def test_weights_are_fetched_by_their_tag(asked):
    fetching.fetch_missing_weights("vit_base_patch16_224.orig_in21k")
    assert asked == ["vit_base_patch16_224.orig_in21k"]
