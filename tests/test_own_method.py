"""A user's own method from the command line: the README's example, from training to reports."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import toy
from PIL import Image
from test_readme import METHOD_GUIDE, blocks

import promptax
from promptax.cli import main
from promptax.methods import registry
from promptax.methods.registry import load_method, method_class

NAME = "bitfit.py:BitFit"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A folder with the method's file, an image, and a finished run of the method."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "bitfit.py").write_text(blocks("python", METHOD_GUIDE)[0])
    Image.new("L", (16, 16)).save(folder / "image.png")
    assert main([*arguments(folder, tiny), "--data.first", "2"]) == 0
    return folder


@pytest.fixture
def forget(monkeypatch):
    """As in a process that has loaded no method of a user's own yet."""
    monkeypatch.setattr(registry, "_own_methods", {})
    monkeypatch.setattr(registry, "_names_in_runs", {})


def arguments(folder, tiny):
    method = ["--method", f"{folder / 'bitfit.py'}:BitFit", "--bias-rate", "0.03"]
    return ["train", *method, *tiny.flags(), "--run", f"{folder / 'run'}"]


def test_a_run_records_the_file_the_class_and_its_settings(place, capsys):
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["method"] == NAME
    assert result["config"]["method"] == {"name": NAME, "bias_rate": 0.03}
    assert 32 * 6 + 6 < result["parameters"]["trainable"] < 10_000
    assert main(["report", f"{place / 'run'}"]) == 0
    assert f"| {NAME} |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--method", f"{place / 'bitfit.py'}:BitFit", "--help"])
    assert "Learning rate of the biases" in capsys.readouterr().out


COMMANDS = ["evaluate RUN", "predict RUN IMAGE", "reproduce RUN"]


@pytest.mark.parametrize("command", toy.slow_except(COMMANDS[:1], COMMANDS))
def test_a_run_is_opened_only_with_the_method_that_the_user_names(command, place, forget, capsys):
    words: dict[str, str] = {"RUN": f"{place / 'run'}", "IMAGE": f"{place / 'image.png'}"}
    argv = [words.get(word) or word for word in command.split()]
    (place / "copy").mkdir(exist_ok=True)
    shutil.copy(place / "bitfit.py", place / "copy")
    assert main(argv) == 2
    assert f"add `--method path/to/{NAME}" in capsys.readouterr().err
    assert main([*argv, "--method", f"{place / 'copy' / 'bitfit.py'}:BitFit"]) == 0
    shown = {"evaluate": "instance", "predict": "image.png", "reproduce": "every bit"}
    assert shown[argv[0]] in capsys.readouterr().out


def test_a_run_is_resumed_with_its_method_and_no_other(place, tiny, forget, capsys):
    argv = arguments(place, tiny)
    argv = [*argv, "--data.first", "2", "--resume"]
    kept = shutil.copytree(place / "run", place / "kept")
    shutil.rmtree(place / "run" / "checkpoints" / "2")
    assert main(argv) == 0
    results = [json.loads((path / "result.json").read_text()) for path in (place / "run", kept)]
    assert results[0]["trained_sha256"] == results[1]["trained_sha256"]
    assert main(["train", "linear", *argv[5:]]) == 2
    assert "method.name was bitfit.py:BitFit, now linear" in capsys.readouterr().err


def test_python_opens_a_run_with_a_class_wherever_it_is_defined(place, forget):
    with pytest.raises(promptax.UserError, match=r"promptax\.load\(run, method=CLASS\)"):
        promptax.load(place / "run")
    # As a notebook has it: a class of this name, from no file.
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec(blocks("python", METHOD_GUIDE)[0], namespace)
    learner = promptax.load(place / "run", method=namespace["BitFit"])
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert learner(images).shape == (2, 6)
    with pytest.raises(promptax.UserError, match=r"'bitfit\.py:BitFit', but L2P was given"):
        promptax.load(place / "run", method=method_class("l2p"))


def test_two_files_of_one_name_cannot_be_told_apart(place, forget, tmp_path):
    shutil.copy(place / "bitfit.py", tmp_path)
    load_method(f"{place / 'bitfit.py'}:BitFit")
    with pytest.raises(promptax.UserError, match=r"two methods are called bitfit\.py:BitFit"):
        load_method(f"{tmp_path / 'bitfit.py'}:BitFit")
