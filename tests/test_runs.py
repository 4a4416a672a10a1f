"""Whole runs from the command line, on files so small that each takes seconds."""

import builtins
import dataclasses
import errno
import gc
import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

import promptax
import promptax as px
from promptax import methods
from promptax.cli import main, train
from promptax.core.interrupt import deferred_interrupts, repeated_interrupts
from promptax.core.settings import Optimizer
from promptax.runs.checkpoint import Checkpoints, _signed
from promptax.runs.experiment import Experiment
from promptax.runs.folder import OWN_FILES, RunFolder
from promptax.runs.inputs import Backbone, Data
from promptax.runs.monitor import Monitor
from promptax.runs.naming import default_folder
from promptax.runs.presets import default_for
from promptax.runs.results import read_result
from promptax.training.evaluate import Evaluator

HYPERPARAMETERS = {
    "l2p": "--prompt-length 5 --vote-group 4 --epochs 4 --eval.vote-group 4"
    " --eval.task-incremental",
    "dualprompt": "--pool-size 3 --e-length 2 --e-layers 4 5 --g-length 3",
    "finetune": "--optimizer sgd --nesterov",
    "linear": "--optimizer adamw --weight-decay 0.1 --schedule cosine --warmup 0.2",
    "linear-joint": "--data.joint --epochs 2",
}
"""Flags of each run, by the name in its result: `linear-joint` is `linear` with `--data.joint`."""


class Trained:
    """Finished runs, one of each method, each trained at the first need."""

    def __init__(self, place, tiny):
        self.place, self.tiny = place, tiny

    def flags(self, method):
        own = f"--learning-rate 0.02 {HYPERPARAMETERS[method]}"
        return [*self.tiny.flags(), *own.split()]

    def __call__(self, method):
        folder = self.place / method
        if not folder.exists():
            name = method.removesuffix("-joint")
            # A result counts what its run compiled, whatever other tests compiled before.
            jax.clear_caches()
            assert main(["train", name, *self.flags(method), "--run", f"{folder}"]) == 0
        return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    return Trained(tmp_path_factory.mktemp("runs"), tiny)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def events(folder):
    """Scalars by name and step, and the names of the histograms, of a TensorBoard folder."""
    scalars, histograms = {}, set()
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12:][:length]), content[16 + length :]
            for value in event.summary.value:
                if value.HasField("histo"):
                    histograms.add((value.tag, event.step))
                else:
                    assert (value.tag, event.step) not in scalars
                    scalars[value.tag, event.step] = value.simple_value
    return scalars, histograms


# Of these in the fast suite; what the others leave comes from the same code.
OFTEN = ("l2p",)


@pytest.mark.parametrize(
    "method",
    toy.slow_except(OFTEN, HYPERPARAMETERS),
)
def test_a_run_leaves_all_that_it_should(method, trained, tiny, capsys):
    folder = trained(method)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "result.json", "tensorboard", "checkpoints", "log.txt"}
    for figure in ("accuracy_matrix.png", "accuracy.png"):
        with Image.open(folder / figure) as image:
            assert min(image.size) > 200
    stages = 1 if method == "linear-joint" else 3
    log = (folder / "log.txt").read_text()
    assert f"task {stages}/{stages}" in log
    kept = {path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()}
    assert kept == ({"1"} if method == "linear-joint" else {"2", "3"})

    result = result_of(folder)
    assert result["method"] == method
    assert result["config"]["method"]["name"] == method.removesuffix("-joint")
    assert result["config"] == json.loads((folder / "config.json").read_text())
    assert result["schema"] == 3
    assert {"promptax", "jax", "equinox", "optax", "orbax-checkpoint"} <= result["versions"].keys()
    assert result["platform"]["backend"] == "cpu"
    assert len(result["platform"]["devices"]) == jax.device_count()
    weights = hashlib.sha256(tiny.weights.read_bytes()).hexdigest()
    facts = result["weights"]
    assert (facts["name"], facts["sha256"], facts["dropped"]) == ("weights.npz", weights, [])
    assert result["stream"]["name"] == "train"
    assert result["stream"]["class_order"] == [[0, 1], [2, 3], [4, 5]]
    assert re.fullmatch("[0-9a-f]{64}", result["stream"]["sha256"])
    assert result["effective_learning_rate"] == 0.02 * 8 / 256
    assert result["evaluation"]["classes"] == "seen"
    assert result["compiles"] == {"train": 1, "evaluate": 1, "query": 1}
    assert result["timing"].keys() == {
        "compile",
        "train",
        "evaluate",
        "images_per_second",
        "first_step",
    }
    assert all(value > 0 for value in result["timing"].values())
    own = sum(leaf.size for leaf in np.load(tiny.weights).values())
    pool = {"l2p": 20 * (5 + 1) * 32, "dualprompt": 3 * (2 * 2 * 2 + 1) * 32 + 2 * 2 * 3 * 32}
    trainable = 32 * 6 + 6 + pool.get(method, 0) + (own if method == "finetune" else 0)
    total = own + 32 * 6 + 6 + pool.get(method, 0)
    assert result["parameters"] == {"trainable": trainable, "total": total}


@pytest.mark.parametrize("method", ["l2p", "linear-joint"])
def test_the_figures_follow_from_the_accuracy_matrix(method, trained):
    result = result_of(trained(method))
    matrix = np.asarray(result["accuracy_matrix"], float)
    assert result["tasks_done"] == len(matrix) == len(result["after_each_task"])
    assert result["average_accuracy"] == pytest.approx(matrix[-1].mean())
    assert result["after_each_task"][-1] == {
        name: result[name] for name in result["after_each_task"][-1]
    }
    if method == "linear-joint":
        assert matrix.shape == (1, 3)
        assert result["forgetting"] is result["backward_transfer"] is None
        return
    assert (np.isnan(matrix) == np.triu(np.ones((3, 3)), 1)).all()
    learned, last = np.diagonal(matrix)[:2], matrix[2, :2]
    assert result["forgetting"] == pytest.approx((np.nanmax(matrix, 0)[:2] - last).mean())
    assert result["backward_transfer"] == pytest.approx((last - learned).mean())
    assert result["learning_accuracy"] == pytest.approx(np.diagonal(matrix).mean())
    assert result["test_examples"] == [6, 6, 6]
    assert result["accuracy_by_example"] == pytest.approx(result["average_accuracy"])
    assert result["after_each_task"][0]["average_accuracy"] == matrix[0, 0]
    assert result["beside"].keys() == {"vote", "task_incremental"}
    assert np.sum(result["prompt_usage"], 1).tolist() == [6 * 4] * 3


def test_tensorboard_has_the_published_names_and_the_values_of_the_result(trained):
    scalars, histograms = events(trained("l2p") / "tensorboard")
    result = result_of(trained("l2p"))
    for task in range(3):
        for stage in range(task, 3):
            found = scalars[f"accuracy_{task + 1}", stage + 1]
            assert found == pytest.approx(result["accuracy_matrix"][stage][task])
            assert scalars[f"eval/accuracy/task_{task + 1}", stage + 1] == found
            assert (f"selected_prompts/task_{task + 1}", stage + 1) in histograms
    for tag, name in {
        "avg_acc": "average_accuracy",
        "forgetting": "forgetting",
        "backward": "backward_transfer",
        "learning_acc": "learning_accuracy",
        "acc_by_example": "accuracy_by_example",
        "avg_incremental_acc": "average_incremental_accuracy",
        "incremental_acc_by_example": "incremental_accuracy_by_example",
    }.items():
        assert scalars[tag, 3] == pytest.approx(result[name], abs=1e-6)
        assert scalars[f"eval/{name}", 3] == scalars[tag, 3]
    assert ("forgetting", 1) not in scalars
    assert scalars["train/learning_rate", 10] == pytest.approx(result["effective_learning_rate"])
    assert np.isfinite(scalars["train/loss", 10])
    assert scalars["train/grad_norm", 10] > 0


def test_the_log_has_seed_tasks_from_1_and_percent(trained):
    log = (trained("l2p") / "log.txt").read_text()
    result = result_of(trained("l2p"))
    assert "l2p on train, seed 0" in log
    assert "task 1 has 16 training images, so it is trained for only 8 steps" in log
    assert f"task 3/3  average accuracy {100 * result['average_accuracy']:.2f} %" in log
    assert "task 0" not in log


@pytest.mark.parametrize("method", toy.slow_except(["l2p"], ["l2p", "finetune"]))
def test_a_loaded_run_gives_logits_that_have_its_accuracies(method, trained, tiny):
    learner = promptax.load(trained(method))
    test = np.load(tiny.test)
    logits = learner(test["images"])
    assert logits.shape == (18, 6)
    assert np.isfinite(logits).all()
    hits = np.asarray(logits.argmax(1) == test["labels"]).reshape(3, 6).mean(1)
    np.testing.assert_allclose(hits, result_of(trained(method))["accuracy_matrix"][-1])
    assert learner.classify(test["images"][:2]) == [
        str(c) for c in np.asarray(logits[:2].argmax(1))
    ]


def test_evaluate_measures_again_and_changes_nothing(trained, capsys):
    folder = trained("l2p")
    capsys.readouterr()  # of its training, if this test was the first to ask for it
    before = (folder / "result.json").read_bytes()
    options = ["--eval.batch-size", "8", "--eval.task-incremental", "--eval.vote-group", "4"]
    assert main(["evaluate", f"{folder}", *options]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == f"**{folder}: accuracy on each task** (%)"
    rows = [line.split("|")[1:-1] for line in lines]
    table = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    result = result_of(folder)
    matrices = {"instance": result, **result["beside"]}
    assert table.keys() == matrices.keys()
    for protocol, row in table.items():
        last = 100 * np.asarray(matrices[protocol]["accuracy_matrix"][-1], float)
        np.testing.assert_allclose(row, [*last, last.mean()], atol=0.006)
    assert (folder / "result.json").read_bytes() == before


def test_report_reads_runs(trained, capsys):
    assert main(["report", f"{trained('l2p')}", f"{trained('linear-joint')}"]) == 0
    out = capsys.readouterr().out
    assert f"{100 * result_of(trained('l2p'))['average_accuracy']:.2f}" in out
    assert "| linear-joint |" in out


def test_a_stream_of_domains_has_forward_transfer_everywhere(tiny, tmp_path, capsys):
    argv = ["train", "linear", "--weights", f"{tiny.weights}", "--data.stream", "glyph-domains"]
    argv += ["--data.per-class", "1", "--data.first", "3", "--epochs", "1", "--batch-size", "8"]
    argv += ["--checkpoint-every", "1", "--keep-checkpoints", "99", "--run"]
    whole = tmp_path / "whole"
    assert main([*argv, f"{whole}"]) == 0
    result = result_of(whole)
    first, *before = result["accuracy_before"]
    assert first is None
    classes = len(result["stream"]["class_names"])
    assert result["forward_transfer"] == pytest.approx(np.mean(before) - 1 / classes)
    scalars, _ = events(whole / "tensorboard")
    assert scalars["forward", 3] == pytest.approx(result["forward_transfer"], abs=1e-6)
    assert scalars["eval/forward_transfer", 2] == scalars["forward", 2]
    shown = f"{100 * result['forward_transfer']:.2f}"
    assert capsys.readouterr().out.splitlines()[-3].split(" | ")[6] == shown
    # What was measured before a task is kept while the task is learned.
    stopped = cut(whole, tmp_path / "stopped", "1.1")
    assert main([*argv, f"{stopped}", "--resume"]) == 0
    assert "resuming 1 steps into task 2" in (stopped / "log.txt").read_text()
    assert comparable(stopped) == comparable(whole)
    # Checkpoints of versions that did not measure it have no such field.
    for last, expected in (("0.1", result["forward_transfer"]), ("1.1", None)):
        old = cut(whole, tmp_path / f"old-{last}", last)
        rewrite(Checkpoints(old / "checkpoints").newest(), without=("before",))
        assert main([*argv, f"{old}", "--resume"]) == 0
        assert read_result(RunFolder(old))["forward_transfer"] == expected


def cut(whole, folder, last):
    """A copy of a run as it was when it wrote a checkpoint."""
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name > last:
            shutil.rmtree(checkpoint)
    return folder


# --- a folder that is there already ---


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished run, and the arguments that made it."""
    folder = shutil.copytree(trained("linear"), tmp_path / "run")
    return folder, ["train", "linear", *trained.flags("linear"), "--run", f"{folder}"]


def test_a_finished_run_is_not_touched_unless_asked(finished, capsys):
    folder, argv = finished
    before = (folder / "result.json").read_bytes()
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert (folder / "result.json").read_bytes() == before
    assert "linear" in capsys.readouterr().out


def test_overwrite_starts_from_nothing_and_comes_to_the_same(finished):
    folder, argv = finished
    before = result_of(folder)
    (folder / "checkpoints" / "stale").touch()
    (folder / "notes.txt").write_text("dear to somebody")
    older = shutil.copytree(folder, folder / "seed-0")
    assert main([*argv, "--overwrite"]) == 0
    assert not (folder / "checkpoints" / "stale").exists()
    assert (folder / "notes.txt").read_text() == "dear to somebody"
    assert result_of(older) == before
    assert result_of(folder)["accuracy_matrix"] == before["accuracy_matrix"]


def test_python_trains_into_a_run_folder_too(tiny, tmp_path, capsys):
    experiment = px.Experiment(
        px.methods.LinearProbe(),
        px.Data(train=tiny.train, test=tiny.test, tasks=3),
        px.Backbone(weights=f"{tiny.weights}"),
        px.Recipe(
            schedule=px.Schedule(epochs=1, batch_size=8), images=px.Images(size=32, resize=None)
        ),
    )
    result = px.train(experiment, f"{tmp_path / 'run'}")
    assert px.train(experiment, tmp_path / "run", resume=True) == result
    assert px.load(tmp_path / "run").class_names == ("0", "1", "2", "3", "4", "5")
    assert main(["report", f"{tmp_path / 'run'}"]) == 0
    assert f"| {100 * result['average_accuracy']:.2f} |" in capsys.readouterr().out


def test_a_run_leaves_nothing_that_overwriting_would_not_remove(trained):
    assert {path.name for path in trained("linear").iterdir()} <= OWN_FILES


@pytest.mark.parametrize("below", ["again", "seeds/seed-1"])
def test_no_run_begins_inside_another(finished, below, capsys):
    folder, argv = finished
    assert main([*argv, "--run", f"{folder / below}"]) == 2
    assert f"'{folder}' is a run" in capsys.readouterr().err
    assert not (folder / below).exists()


GLYPHS = default_for("linear", "split-glyphs")
# Only plain values are drawn, since the type checker of the tests draws random numbers itself.
OPTIMIZERS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["adam", "sgd"]),
        "learning_rate": st.sampled_from([0.03, 1e-5]),
        "clip_norm": st.sampled_from([None, 1.0]),
        "nesterov": st.booleans(),
    }
)
DATA = st.fixed_dictionaries(
    {
        "stream": st.sampled_from(["split-glyphs", "split-fashion-mnist"]),
        "class_order": st.sampled_from([None, (0, 1, 2), (0, 12), (2, 1, 0)]),
        "train": st.sampled_from([None, Path("a/train.npz"), Path("b/train.npz")]),
    }
)
WEIGHTS = st.sampled_from(["glyph-vit", "a/vit.npz", "b/vit.npz", "vit npz", "vit-npz"])
SETTINGS = st.tuples(OPTIMIZERS, DATA, WEIGHTS, st.integers(0, 1))


def experiment(optimizer, data, weights, seed):
    recipe = dataclasses.replace(GLYPHS.recipe, optimizer=Optimizer(**optimizer))
    return Experiment(methods.LinearProbe(), Data(**data), Backbone(weights), recipe, seed)


@given(one=SETTINGS, other=SETTINGS)
def test_folders_of_different_experiments_never_collide(one, other):
    one, other = experiment(*one), experiment(*other)
    assert (default_folder(one) == default_folder(other)) == (one == other)
    assert default_folder(one).parent == Path("runs")


def flags_of(argv):
    start, rest = train._start(argv)
    assert start is not None
    return train._parse_flags(start, rest)


def test_the_folder_says_what_differs_from_the_defaults():
    argv = ["l2p", "--learning-rate", "0.01", "--seeds", "0", "1"]
    names = [path.name for _, path, _ in flags_of(argv).runs()]
    changed = "split-fashion-mnist-l2p-learning-rate-0.01"
    assert names == [changed, f"{changed}-seed-1"]
    ((_, usual, _),) = flags_of(["l2p"]).runs()
    assert usual == Path("runs") / "split-fashion-mnist-l2p"


def test_a_kill_between_result_and_checkpoint_costs_one_task(finished):
    folder, argv = finished
    before = result_of(folder)
    shutil.rmtree(folder / "checkpoints" / "3")
    assert main([*argv, "--resume"]) == 0
    assert (folder / "checkpoints" / "3").is_dir()
    after = result_of(folder)
    assert after["accuracy_matrix"] == before["accuracy_matrix"]
    assert "resuming after 2 tasks" in (folder / "log.txt").read_text()


def test_a_run_with_steps_to_save_is_loaded_as_of_its_last_whole_task(trained, tiny, tmp_path):
    folder = tmp_path / "run"
    argv = ["train", "linear", *trained.flags("linear"), "--run", f"{folder}"]
    assert main([*argv, "--checkpoint-every", "1", "--keep-checkpoints", "3"]) == 0
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"2", "2.1", "2.2", "3"}
    for task in ("2", "3"):
        shutil.rmtree(folder / "checkpoints" / task)
    with pytest.raises(promptax.UserError, match="has not finished its first task"):
        promptax.load(folder)
    assert main([*argv, "--resume"]) == 0
    assert "resuming 2 steps into task 3" in (folder / "log.txt").read_text()
    assert result_of(folder)["accuracy_matrix"] == result_of(trained("linear"))["accuracy_matrix"]


def test_a_damaged_checkpoint_and_result_cost_no_more_than_a_task(finished, caplog):
    folder, argv = finished
    before = comparable(folder)
    (folder / "checkpoints" / "3" / "record.json").write_text("")
    (folder / "result.json").write_text("{")
    assert main([*argv, "--resume"]) == 0
    assert result_of(folder)["accuracy_matrix"] == before["accuracy_matrix"]
    assert "3 is damaged (record.json has changed): set aside as 3.damaged" in caplog.text
    (folder / "result.json").unlink()
    assert main([*argv, "--resume"]) == 0
    assert comparable(folder) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"method": {"name": "linear", "train_backbone": True}}, "method.train_backbone was True"),
        ({"seed": 5}, "seed was 5, now 0"),
        ({"images": {"size": 16}}, "images.size was 16, now 32"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_field(finished, part, words, capsys):
    folder, argv = finished
    checkpoint = Checkpoints(folder / "checkpoints").newest()
    assert checkpoint is not None
    rewrite(checkpoint, identity={**checkpoint.record["identity"], **part})
    assert main([*argv, "--resume"]) == 2
    assert f"checkpoint {checkpoint.path} is of another run: {words}" in capsys.readouterr().err


def rewrite(checkpoint, *, without=(), **changes):
    """Write other values into its record, and the digests that belong to them."""
    file, manifest = checkpoint.path / "record.json", checkpoint.path / "manifest.json"
    record = {name: value for name, value in checkpoint.record.items() if name not in without}
    file.write_text(json.dumps({**record, **changes}))
    content = json.loads(manifest.read_text())
    content["files"]["record.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    del content["sha256"]
    manifest.write_text(json.dumps(_signed(content)))


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": 5},
        {"matrices": 5},
        {"matrices": {"instance": ["x"]}},
        {"before": 5},
        {"before": {"instance": [0.5]}},
        {"position": 5},
        {"position": [1, 2, 3, 4]},
        {"more": 1},
    ],
)
def test_a_record_that_somebody_made_by_hand_is_refused(finished, changes, capsys):
    folder, argv = finished
    rewrite(Checkpoints(folder / "checkpoints").newest(), **changes)
    assert main([*argv, "--resume"]) == 2
    err = capsys.readouterr().err
    assert "is of another run" in err or "has a record that is not of this version" in err
    assert err.count("\n") <= 3


@pytest.mark.parametrize(
    "left", [[], ["lock"], ["lock", "config.tmp", ".config.json.promptax-draft"]]
)
def test_a_folder_that_a_kill_left_without_a_run_can_be_used(finished, tmp_path, left):
    folder, argv = tmp_path / "begun", finished[1]
    folder.mkdir()
    for name in left:
        (folder / name).write_text("{")
    assert main([*argv[:-1], f"{folder}"]) == 0


# --- disks ---


def fail_at(name, call, code=errno.ENOSPC):
    """A file layer that fails from a certain write below `name` on."""
    written = itertools.count(1)

    def opener(file, mode="r", *args, **kwargs):
        below = name in f"{file}" and set(mode) & set("wa+")
        if below and next(written) >= call:
            raise OSError(code, os.strerror(code), f"{file}")
        return REAL_OPEN(file, mode, *args, **kwargs)

    return opener


REAL_OPEN = io.open


@pytest.mark.parametrize(
    ("name", "call", "kept"),
    [
        ("run/.result", 2, "checkpoints/1: go on with --resume"),
        ("record.json", 2, "checkpoints/1: go on with --resume"),
        pytest.param("manifest.json", 1, "no checkpoint", marks=pytest.mark.slow),
        pytest.param("run/tensorboard", 1, "no checkpoint", marks=pytest.mark.slow),
        pytest.param("run/log.txt", 1, "no checkpoint", marks=pytest.mark.slow),
        pytest.param("run/.config", 1, "", marks=pytest.mark.slow),
        pytest.param("run/lock", 1, "", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_names_path_and_what_is_kept(
    trained, tmp_path, monkeypatch, capsys, name, call, kept
):
    argv = ["train", "linear", *trained.flags("linear"), "--run", f"{tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        for module in (io, builtins):
            patch.setattr(module, "open", fail_at(name, call))
        assert main(argv) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "promptax: " in line]
    assert "No space left on device" in message
    assert str(tmp_path / "run") in message
    assert kept in message
    assert main([*argv, "--resume"]) == 0
    assert (
        result_of(tmp_path / "run")["accuracy_matrix"]
        == result_of(trained("linear"))["accuracy_matrix"]
    )


@pytest.mark.parametrize("code", toy.slow_except([errno.EMFILE], [errno.EDQUOT, errno.EMFILE]))
def test_a_quota_and_a_limit_of_open_files_lose_nothing_either(
    trained, tmp_path, monkeypatch, capsys, code
):
    straight = result_of(trained("linear"))["accuracy_matrix"]
    argv = ["train", "linear", *trained.flags("linear"), "--run", f"{tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        for module in (io, builtins):
            patch.setattr(module, "open", fail_at("record.json", 2, code))
        assert main(argv) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "promptax: " in line]
    assert os.strerror(code) in message
    assert "checkpoints/1: go on with --resume" in message
    assert main([*argv, "--resume"]) == 0
    assert result_of(tmp_path / "run")["accuracy_matrix"] == straight


def test_fewer_open_files_than_a_run_needs_are_refused_at_once(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8, 8))
    assert main(["train", "linear", *tiny.flags(), "--run", f"{tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"can open only \d more files, and needs 32: raise the limit with", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_figure_depends_on_the_clock_of_the_wall(trained, tmp_path, monkeypatch):
    straight = result_of(trained("linear"))["accuracy_matrix"]
    # Orbax gives up on a checkpoint if the clock jumps by more than minutes while it writes one.
    jumps = itertools.cycle([60.0, 0.0, 30.0, -30.0])
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + next(jumps))
        argv = ["train", "linear", *trained.flags("linear"), "--run", f"{tmp_path / 'run'}"]
        assert main(argv) == 0
    stored = read_result(RunFolder(tmp_path / "run"))  # which refuses negative times and rates
    assert stored["accuracy_matrix"] == straight


@contextmanager
def mounted(place, options):
    """A small disk of its own; mounting one needs rights that not everybody has."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place]).returncode:
        pytest.skip("cannot mount a disk here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as place:
        yield place


@pytest.mark.slow
def test_a_disk_without_free_inodes_loses_nothing(whole, tmp_path, capsys):
    argv, straight = whole
    with mounted(tmp_path / "disk", "nr_inodes=150") as place:
        folder = place / "run"
        assert main([*argv, f"{folder}"]) == 2
        err = capsys.readouterr().err
        assert "No space left" in err
        assert "Traceback" not in err
        assert "go on with --resume" in err
        subprocess.run(["mount", "-o", "remount,nr_inodes=10000", place], check=True)
        assert main([*argv, f"{folder}", "--resume"]) == 0
        assert_same(folder, straight)


def test_a_disk_that_fills_up_or_turns_read_only(whole, disk, capsys):
    argv, straight = whole
    folder, ballast = disk / "run", disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 2**20 - 150_000))
    assert main([*argv, f"{folder}"]) == 2
    err = capsys.readouterr().err
    assert "No space left" in err
    assert "Traceback" not in err
    assert "go on with --resume" in err
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main([*argv, f"{folder}", "--resume"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    ballast.unlink()
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert_same(folder, straight)


def test_a_folder_that_vanishes_is_not_made_anew(whole, tmp_path, monkeypatch, capsys):
    argv, _ = whole
    folder, on_task = tmp_path / "run", Monitor.on_task

    def vanish(self, ended):
        on_task(self, ended)
        if ended.task_number == 1:
            folder.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(Monitor, "on_task", vanish)
    assert main([*argv, f"{folder}"]) == 2
    err = capsys.readouterr().err
    assert f"'{folder / '.result.json.promptax-draft'}': No such file or directory" in err
    assert "There is no checkpoint" in err
    assert not folder.exists()


def test_a_run_is_opened_on_its_own_weights_and_data_only(finished, tiny, tmp_path, capsys):
    folder, _ = finished
    wanted = promptax.load(folder)(np.zeros((1, 8, 8), np.uint8))
    config = json.loads((folder / "config.json").read_text())
    leaves = dict(np.load(tiny.weights))
    np.savez(tmp_path / "w.npz", **leaves | {"cls": leaves["cls"] + 1})
    arrays = dict(np.load(tiny.train))
    np.savez(tmp_path / "train.npz", images=arrays["images"], labels=arrays["labels"][::-1])
    for part, changed in (
        ("backbone", {"weights": f"{tmp_path / 'w.npz'}"}),
        ("data", {"train": f"{tmp_path / 'train.npz'}"}),
    ):
        other = {**config, part: {**config[part], **changed}}
        (folder / "config.json").write_text(json.dumps(other))
        # Weights are found by their digest, and to predict takes no data.
        got = promptax.load(folder)(np.zeros((1, 8, 8), np.uint8))
        np.testing.assert_array_equal(got, wanted)
    assert main(["evaluate", f"{folder}"]) == 2
    assert "stream.sha256 was" in capsys.readouterr().err


def test_several_seeds_get_a_folder_each(trained, tmp_path, capsys):
    argv = [
        "train",
        "linear",
        *trained.flags("linear"),
        "--seeds",
        "3",
        "4",
        "--run",
        f"{tmp_path}",
    ]
    assert main([*argv, "--data.shuffle-classes"]) == 0
    results = [result_of(tmp_path / f"seed-{seed}") for seed in (3, 4)]
    assert [result["config"]["seed"] for result in results] == [3, 4]
    orders = [result["stream"]["class_order"] for result in results]
    assert orders[0] != orders[1]
    assert [sorted(itertools.chain(*order)) for order in orders] == [list(range(6))] * 2
    assert "±" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_is_located(tiny, tmp_path, capsys):
    argv = ["train", "linear", *tiny.flags(), "--run", f"{tmp_path / 'run'}"]
    assert main([*argv, "--learning-rate", "5e39"]) == 2
    message = capsys.readouterr().err
    for words in (
        "since step 2 (task 1; all weights are finite, the gradient of .head.kernel",
        "lower",
        "no checkpoint",
    ):
        assert words in message
    assert not (tmp_path / "run" / "result.json").exists()


# --- runs that are cut off ---


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Arguments for a run of six tasks whose optimizer is carried along, and its folder."""
    argv = ["train", "linear", *tiny.flags(tasks=6), "--epochs", "20", "--no-reset", "--run"]
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*argv, f"{folder}"]) == 0
    return argv, folder


class Running:
    """A run in a process of its own."""

    def __init__(self, argv, folder):
        command = [sys.executable, "-m", "promptax", *argv, f"{folder}"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.checkpoints = folder / "checkpoints"

    def pass_by(self, checkpoint):
        deadline = time.monotonic() + 120
        while not (self.checkpoints / checkpoint).is_dir():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self, by):
        self.process.send_signal(by)
        err = self.process.communicate(timeout=60)[1]
        return self.process.returncode, err


@pytest.fixture
def started():
    """Starts runs, and returns when they are past a checkpoint."""
    running = []

    def start(argv, folder, checkpoint):
        running.append(Running(argv, folder))
        running[-1].pass_by(checkpoint)
        return running[-1]

    yield start
    for run in running:
        if run.process.poll() is None:  # the test has failed
            run.end(signal.SIGKILL)


def comparable(folder):
    """A result without what depends on the machine, and on what was compiled before."""
    return {**result_of(folder), "timing": None, "compiles": None}


def assert_same(folder, whole):
    results = [comparable(path) for path in (folder, whole)]
    assert results[0] == results[1]
    assert results[0]["tasks_done"] == 6
    seen = [events(path / "tensorboard") for path in (folder, whole)]
    assert seen[0] == seen[1]
    states = [jax.tree.leaves(promptax.load(path).model.head) for path in (folder, whole)]
    for resumed, straight in zip(*states, strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_a_killed_run_resumes_to_the_same_bits(whole, started, tmp_path, caplog):
    argv, straight = whole
    folder = tmp_path / "run"
    often = [*argv[:-1], "--checkpoint-every", "3", "--run"]
    code, _ = started(often, folder, "2.3").end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert 2 <= result_of(folder)["tasks_done"] < 6
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert "taking over the lock of process" in caplog.text
    assert "resuming" in (folder / "log.txt").read_text()
    assert_same(folder, straight)
    scalars, _ = events(folder / "tensorboard")
    assert {("accuracy_6", 6), ("accuracy_1", 6), ("train/loss", 120)} <= scalars.keys()


@pytest.mark.parametrize(
    ("method", "number", "code", "left"),
    [
        ((Monitor, "on_step"), signal.SIGTERM, 143, "1.3"),
        pytest.param(
            (Evaluator, "measure"), signal.SIGINT, 130, "2.20.trained", marks=pytest.mark.slow
        ),
    ],
)
def test_a_signal_saves_after_the_step_or_within_an_evaluation(
    whole, tmp_path, monkeypatch, capfd, method, number, code, left
):
    """A task that is trained is not trained again, nor its end repeated."""
    argv, straight = whole
    folder, original, calls = tmp_path / "run", getattr(*method), itertools.count()
    when = {"on_step": 22, "measure": 2}[method[1]]

    def strike(*args, **options):
        if next(calls) == when:
            signal.raise_signal(number)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*method, strike)
        assert main([*argv, f"{folder}"]) == code
    assert "saving after this step, then stopping" in capfd.readouterr().err
    assert (folder / "checkpoints" / left).is_dir()
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert re.search(r"resuming \d+ steps into task", (folder / "log.txt").read_text())
    assert_same(folder, straight)


@pytest.mark.slow
def test_a_slow_disk_and_a_signal_while_it_writes_lose_nothing(whole, tmp_path, monkeypatch):
    argv, straight = whole
    folder, fsync, calls = tmp_path / "run", os.fsync, itertools.count()

    def slow(descriptor):
        time.sleep(0.05)
        fsync(descriptor)
        if next(calls) == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        assert main([*argv, f"{folder}"]) == 143
    assert not list((folder / "checkpoints").glob("*.draft"))
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert_same(folder, straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_second_signal_does_not_wait(number, code):
    program = f"""if True:
        import os, signal, sys, time
        from promptax.core.interrupt import deferred_interrupts, repeated_interrupts
        with deferred_interrupts() as interrupts:
            os.kill(os.getpid(), {int(number)})
            assert interrupts.pending
            try:
                os.kill(os.getpid(), {int(number)})
                time.sleep(30)
            except KeyboardInterrupt:
                sys.exit(130)
    """
    assert subprocess.run([sys.executable, "-c", program], timeout=20).returncode == code


def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not():
    with deferred_interrupts() as interrupts:
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_inside_a_callback_of_the_garbage_collector_is_not_lost(capsys):
    strikes = iter([signal.SIGINT])

    def collect_and_wait():
        gc.collect()
        time.sleep(10)

    def strike(phase, info):
        for number in strikes:
            signal.raise_signal(number)

    gc.callbacks.append(strike)
    try:
        with repeated_interrupts(), pytest.raises(KeyboardInterrupt):
            collect_and_wait()
    finally:
        gc.callbacks.remove(strike)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_an_interrupted_run_is_locked_while_it_goes_and_resumes_after(
    whole, started, tmp_path, capsys
):
    argv, straight = whole
    folder = tmp_path / "run"
    running = started(argv, folder, "1")
    os.kill(running.process.pid, signal.SIGSTOP)  # so that it cannot finish meanwhile
    for flag in ("--resume", "--overwrite"):
        assert main([*argv, f"{folder}", flag]) == 2
        message = capsys.readouterr().err
        assert f"in use by process {running.process.pid} on {socket.gethostname()}" in message
    os.kill(running.process.pid, signal.SIGCONT)
    code, err = running.end(signal.SIGINT)
    assert code == 130
    assert err.splitlines()[-1].startswith("promptax: interrupted.")
    assert "--resume" in err
    assert "Traceback" not in err
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert_same(folder, straight)
