"""Running an experiment again: the same bits, or what differs and whether that explains it."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from promptax.cli import main
from promptax.runs import provenance
from promptax.runs.provenance import digest
from promptax.runs.reproduce import compare


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A finished run, in a folder of its own."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("reproduce") / "run")


@pytest.fixture
def result(run):
    return json.loads((run / "result.json").read_text())


SAME = "reproduced: every accuracy and every bit of the trained parameters is the same\n"


def edited(run, folder, **changes):
    """A copy of a run with another result.json."""
    shutil.copytree(run, folder)
    stored = json.loads((run / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**stored, **changes}))
    return folder


def reproduce(capsys, *argv):
    code = main(["reproduce", *map(str, argv)])
    return code, capsys.readouterr().out


def test_the_same_bits_come_out_twice(run, result, capsys):
    for folder in ("run-reproduced", "again"):
        options = () if folder == "run-reproduced" else ("--run", run.with_name(folder))
        code, out = reproduce(capsys, run, *options)
        assert (code, out) == (0, SAME)
        repeated = json.loads((run.with_name(folder) / "result.json").read_text())
        for part in ("trained_sha256", "accuracy_matrix", "prompt_usage", "source", "stream"):
            assert repeated[part] == result[part]


FLAGS = {
    "l2p": "--pool-size 3 --top-k 1 --prompt-length 2 --layers 0 --vote-group 4 --task-mask",
    "dualprompt": "--pool-size 3 --vote-group 4 --eval.vote-group 4",
    "finetune": "--images.augment.operations 2 --images.augment.mixup 0.8",
    "linear": "--data.joint --optimizer sgd",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", FLAGS)
def test_every_method_gives_the_same_bits_again(method, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    argv = ["train", method, *tiny.flags(), *FLAGS[method].split(), "--run", str(folder)]
    assert main(argv) == 0
    capsys.readouterr()
    assert reproduce(capsys, folder) == (0, SAME)
    stored = json.loads((folder / "result.json").read_text())
    assert main([*argv[:-1], str(tmp_path / "other"), "--seed", "1"]) == 0
    other = json.loads((tmp_path / "other" / "result.json").read_text())
    assert stored["trained_sha256"] != other["trained_sha256"]


def test_other_bits_are_told(run, capsys, tmp_path):
    other = edited(run, tmp_path / "other", trained_sha256="beef")
    code, out = reproduce(capsys, other)
    assert code == 1
    assert "every accuracy is the same, but the trained parameters have other bits" in out
    assert "nothing that is recorded explains it" in out


def test_other_weights_are_told_before_anything_is_run(run, result, capsys, tmp_path):
    weights = {**result["weights"], "sha256": "beef"}
    other = edited(run, tmp_path / "other", weights=weights)
    code, out = reproduce(capsys, other)
    assert code == 1
    assert out.splitlines()[0].startswith(
        f"weights.sha256: beef then, {result['weights']['sha256']}"
    )
    assert "nothing was run" in out
    assert not (tmp_path / "other-reproduced").exists()


def test_pixels_that_changed_under_the_same_labels_are_noticed(run, tiny, capsys):
    arrays, kept = dict(np.load(tiny.test)), tiny.test.read_bytes()
    try:
        np.savez(tiny.test, **{**arrays, "images": arrays["images"] ^ 1})
        code, out = reproduce(capsys, run, "--run", run.with_name("pixels"))
    finally:
        tiny.test.write_bytes(kept)
    assert code == 1
    assert out.startswith("stream.images_sha256: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"jax": "0.9.0"}}, "versions.jax: 0.9.0 then rounding magnify"),
        ({"versions": {"optax": "0.1"}}, "versions.optax: 0.1 then another program"),
        ({"platform": {"devices": ["TPU v5"]}}, "platform.devices: TPU v5 rounding"),
        ({"platform": {"system": "Plan 9"}}, "platform.system: Plan 9 should not matter"),
        (
            {"source": {"version": "0.0.9", "commit": "0123456789abc", "dirty": True}},
            "source: 0.0.9 (commit 0123456789, changed since, another program",
        ),
        ({"config": {"seed": 7}}, "config.seed: 7 another experiment"),
    ],
)
def test_what_went_in_is_compared_and_the_gravest_cause_is_named(result, change, words):
    ((part, changed),) = change.items()
    before = {**result, part: {**result[part], **changed}, "trained_sha256": "beef"}
    done = compare(before, result)
    text = "\n".join(done.lines())
    assert [word for word in words.split() if word not in text] == [], text
    assert not done.succeeded
    cause = done.differences[0].cause
    assert ("please report" in text) == (cause == "nothing")
    same = compare({**before, "trained_sha256": result["trained_sha256"]}, result)
    assert same.succeeded
    assert len(same.differences) == len(done.differences) >= 1


def test_the_gravest_difference_comes_first_and_explains(result):
    versions = {**result["versions"], "orbax-checkpoint": "0", "jaxlib": "0", "optax": "0"}
    before = {**result, "versions": versions, "trained_sha256": "beef"}
    done = compare(before, result)
    assert [difference.cause for difference in done.differences] == ["code", "rounding", "nothing"]
    assert "versions.optax explains it" in list(done.lines())[-1]


def test_other_figures_are_told_with_their_size(result):
    matrix = [[None if x is None else x / 2 for x in row] for row in result["accuracy_matrix"]]
    largest = max(x for row in matrix for x in row if x is not None)
    before = {**result, "accuracy_matrix": matrix, "average_accuracy": 0.125}
    done = compare(before, result)
    text = "\n".join(done.lines())
    assert "average accuracy: 12.50 % then" in text
    assert f"at most {100 * largest:.2f} points" in text
    vote = {"vote": {"accuracy_matrix": matrix}}
    assert not compare({**result, "beside": vote}, result).succeeded
    assert not compare({**result, "accuracy_before": [None, 0.1, None]}, result).succeeded
    shorter = compare({**result, "accuracy_matrix": matrix[:1]}, result).outcome
    assert shorter is not None
    assert math.isnan(shorter.largest)


def test_a_result_of_an_earlier_version_is_compared_as_far_as_it_goes(result):
    added = ("source", "trained_sha256", "accuracy_before")
    before = {k: v for k, v in result.items() if k not in added}
    done = compare(before, result)
    assert done.succeeded
    assert list(done.lines()) == [
        "not recorded then, so not compared: source",
        "reproduced: every accuracy is the same",
    ]


def test_the_original_is_never_the_new_folder(run, capsys):
    before = (run / "result.json").read_bytes()
    for folder in (run, run / ".." / run.name):
        assert main(["reproduce", str(run), "--run", str(folder), "--overwrite"]) == 2
        assert "is the run itself" in capsys.readouterr().err
    assert (run / "result.json").read_bytes() == before


def test_a_digest_is_of_bits_shapes_and_types():
    one = {"a": np.arange(4.0), "b": np.zeros(2, np.int32)}
    renamed = {"c": one["a"], "d": one["b"]}
    assert digest(one) == digest(renamed)
    flipped = np.nextafter(one["a"], 9)
    for other in ({**one, "a": flipped}, {**one, "a": one["a"].reshape(2, 2)}):
        assert digest(other) != digest(one)
    assert digest({"a": np.zeros(2, np.float32)}) != digest({"a": np.zeros(1, np.float64)})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package in it, and what the package says of its source."""
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "runs").mkdir()
    (package / "runs" / "provenance.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(provenance, "source", provenance.source.__wrapped__)
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@y.z", "-c", "commit.gpgsign=false"]
    command = ["git", *who, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_is_known_and_whether_it_was_changed(checkout):
    # A package in a virtual environment inside a checkout of something else.
    assert provenance.source()["commit"] is None
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    clean = provenance.source()
    assert (clean["commit"], clean["dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "notes.txt").write_text("beside the package")
    assert provenance.source() == clean
    (checkout / "src" / "package" / "runs" / "provenance.py").write_text("x = 2\n")
    changed = provenance.source()
    assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)
    assert changed["sha256"] != clean["sha256"]


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    source = provenance.source.__wrapped__()
    assert source["commit"] is source["dirty"] is None
    assert len(source["sha256"]) == 64


def test_the_digest_of_the_source_is_of_the_whole_package():
    assert {"core", "methods", "runs", "training"} <= {p.name for p in provenance.PACKAGE.iterdir()}
