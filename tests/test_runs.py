"""Whole runs from the command line, on files so small that each takes seconds."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

import promptax
from promptax.cli import main
from promptax.interrupt import deferred_interrupts

HYPERPARAMETERS = {
    "l2p": "--vote-group 4 --epochs 4 --eval.vote-group 4 --eval.task-incremental",
    "dualprompt": "--pool-size 3 --e-length 2 --e-layers 4 5 --g-length 3",
    "finetune": "--optimizer sgd --nesterov",
    "linear": "--optimizer adamw --weight-decay 0.1 --schedule cosine --warmup 0.2",
    "joint": "--epochs 2",
}


class Trained:
    """Finished runs, one of each method, each trained at the first need."""

    def __init__(self, place, tiny):
        self.place, self.tiny = place, tiny

    def flags(self, method):
        # A rate of its own, so that nothing that another test compiled is found compiled here.
        own = f"--learning-rate 0.02 {HYPERPARAMETERS[method]}"
        return [*self.tiny.flags(), *own.split()]

    def __call__(self, method):
        folder = self.place / method
        if not folder.exists():
            assert main(["train", method, *self.flags(method), "--run", f"{folder}"]) == 0
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


@pytest.mark.parametrize("method", HYPERPARAMETERS)
def test_a_run_leaves_all_that_it_should(method, trained, tiny, capsys):
    folder = trained(method)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "result.json", "tensorboard", "checkpoints", "log.txt"}
    for figure in ("accuracy_matrix.png", "accuracy.png"):
        with Image.open(folder / figure) as image:
            assert min(image.size) > 200
    stages = 1 if method == "joint" else 3
    log = (folder / "log.txt").read_text()
    assert f"task {stages}/{stages}" in log
    kept = {path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()}
    assert kept == ({"1"} if method == "joint" else {"2", "3"})

    result = result_of(folder)
    assert result["method"] == method == result["config"]["method"]["name"]
    assert result["config"] == json.loads((folder / "config.json").read_text())
    assert result["schema"] == 1
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
    assert result["timing"].keys() == {"compile", "train", "evaluate", "images_per_second"}
    assert all(value > 0 for value in result["timing"].values())
    own = sum(leaf.size for leaf in np.load(tiny.weights).values())
    pool = {"l2p": 20 * (5 + 1) * 32, "dualprompt": 3 * (2 * 2 * 2 + 1) * 32 + 2 * 2 * 3 * 32}
    trainable = 32 * 6 + 6 + pool.get(method, 0) + (own if method == "finetune" else 0)
    total = own + 32 * 6 + 6 + pool.get(method, 0)
    assert result["parameters"] == {"trainable": trainable, "total": total}


@pytest.mark.parametrize("method", ["l2p", "joint"])
def test_the_figures_follow_from_the_accuracy_matrix(method, trained):
    result = result_of(trained(method))
    matrix = np.asarray(result["accuracy_matrix"], float)
    assert result["stages_done"] == len(matrix) == len(result["after_each_task"])
    assert result["average_accuracy"] == pytest.approx(matrix[-1].mean())
    assert result["after_each_task"][-1] == {
        name: result[name] for name in result["after_each_task"][-1]
    }
    if method == "joint":
        assert matrix.shape == (1, 3)
        assert result["forgetting"] is result["backward_transfer"] is None
        return
    assert (np.isnan(matrix) == np.triu(np.ones((3, 3)), 1)).all()
    learned, last = np.diagonal(matrix)[:2], matrix[2, :2]
    assert result["forgetting"] == pytest.approx((np.nanmax(matrix, 0)[:2] - last).mean())
    assert result["backward_transfer"] == pytest.approx((last - learned).mean())
    assert result["learning_accuracy"] == pytest.approx(np.diagonal(matrix).mean())
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
            assert (f"selected_prompts/task_{task + 1}", stage + 1) in histograms
    for tag, name in {
        "avg_acc": "average_accuracy",
        "forgetting": "forgetting",
        "backward": "backward_transfer",
        "learning_acc": "learning_accuracy",
    }.items():
        assert scalars[tag, 3] == pytest.approx(result[name], abs=1e-6)
    assert ("forgetting", 1) not in scalars
    assert scalars["train/learning_rate", 10] == pytest.approx(result["effective_learning_rate"])
    assert np.isfinite(scalars["train/loss", 10])
    assert scalars["train/grad_norm", 10] > 0


@pytest.mark.parametrize("method", ["l2p", "finetune"])
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
    before = (folder / "result.json").read_bytes()
    options = ["--eval.batch-size", "8", "--eval.task-incremental", "--eval.vote-group", "4"]
    assert main(["evaluate", f"{folder}", *options]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    table = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    result = result_of(folder)
    matrices = {"instance": result, **result["beside"]}
    assert table.keys() == matrices.keys()
    for protocol, row in table.items():
        last = 100 * np.asarray(matrices[protocol]["accuracy_matrix"][-1], float)
        np.testing.assert_allclose(row, [*last, last.mean()], atol=0.006)
    assert (folder / "result.json").read_bytes() == before


def test_report_reads_runs(trained, capsys):
    assert main(["report", f"{trained('l2p')}", f"{trained('joint')}"]) == 0
    out = capsys.readouterr().out
    assert f"{100 * result_of(trained('l2p'))['average_accuracy']:.2f}" in out
    assert "| joint |" in out


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
    (folder / "stale").touch()
    assert main([*argv, "--overwrite"]) == 0
    assert not (folder / "stale").exists()
    assert result_of(folder)["accuracy_matrix"] == before["accuracy_matrix"]


def test_a_kill_between_result_and_checkpoint_costs_one_task(finished):
    folder, argv = finished
    before = result_of(folder)
    shutil.rmtree(folder / "checkpoints" / "3")
    assert main([*argv, "--resume"]) == 0
    assert (folder / "checkpoints" / "3").is_dir()
    after = result_of(folder)
    assert after["accuracy_matrix"] == before["accuracy_matrix"]
    assert "resuming after 2 tasks" in (folder / "log.txt").read_text()


def test_a_run_is_not_loaded_on_other_weights_or_data(finished, tiny, tmp_path):
    folder, _ = finished
    config = json.loads((folder / "config.json").read_text())
    leaves = dict(np.load(tiny.weights))
    np.savez(tmp_path / "w.npz", **leaves | {"cls": leaves["cls"] + 1})
    arrays = dict(np.load(tiny.train))
    np.savez(tmp_path / "train.npz", images=arrays["images"], labels=arrays["labels"][::-1])
    for part, changed, words in (
        ("backbone", {"weights": f"{tmp_path / 'w.npz'}"}, "the weights of run"),
        ("data", {"train": f"{tmp_path / 'train.npz'}"}, "the stream of run"),
    ):
        other = {**config, part: {**config[part], **changed}}
        (folder / "config.json").write_text(json.dumps(other))
        with pytest.raises(promptax.UserError, match=words):
            promptax.load(folder)


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
    for words in ("not finite", "step 1", "task 0", "lower the learning rate", "none yet"):
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
    """A run in a process of its own, past its first tasks."""

    def __init__(self, argv, folder, tasks):
        command = [sys.executable, "-m", "promptax", *argv, f"{folder}"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints" / f"{tasks}").is_dir():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self, by):
        self.process.send_signal(by)
        err = self.process.communicate(timeout=60)[1]
        return self.process.returncode, err


def assert_same(folder, whole):
    assert result_of(folder)["accuracy_matrix"] == result_of(whole)["accuracy_matrix"]
    assert result_of(folder)["stages_done"] == 6
    states = [jax.tree.leaves(promptax.load(path).model.head) for path in (folder, whole)]
    for resumed, straight in zip(*states, strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    argv, straight = whole
    folder = tmp_path / "run"
    code, _ = Running(argv, folder, tasks=2).end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert 2 <= result_of(folder)["stages_done"] < 6
    assert main([*argv, f"{folder}", "--resume"]) == 0
    assert_same(folder, straight)
    scalars, _ = events(folder / "tensorboard")
    assert {("accuracy_6", 6), ("accuracy_1", 6)} <= scalars.keys()


def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not():
    with deferred_interrupts() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_run_is_locked_while_it_goes_and_resumes_after(whole, tmp_path, capsys):
    argv, straight = whole
    folder = tmp_path / "run"
    running = Running(argv, folder, tasks=1)
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
