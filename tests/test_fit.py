"""`px.fit` with a run folder: what is kept, resumed, predicted, and refused."""

import json
from dataclasses import replace

import numpy as np
import optax
import pytest
import toy
from PIL import Image

import promptax as px
from promptax.cli import main
from promptax.core.settings import Schedule
from promptax.methods.base import AbstractMethod
from promptax.runs.folder import OWN_FILES

METHOD = px.methods.LinearProbe()


def fit(mesh, run=None, method: AbstractMethod = METHOD, **changes):
    given = {"stream": toy.make_stream(), "backbone": toy.make_vit(), "recipe": toy.RECIPE}
    return px.fit(method, **(given | changes), mesh=mesh, run=run)


@pytest.fixture(scope="module")
def in_memory(mesh):
    return fit(mesh)


@pytest.fixture(scope="module")
def folder(mesh, tmp_path_factory):
    """A finished run of objects, which no test may change."""
    path = tmp_path_factory.mktemp("fit") / "run"
    fit(mesh, path)
    return path


def test_a_run_folder_does_not_change_the_numbers(mesh, in_memory, folder):
    assert toy.same_bits(px.load(folder), in_memory.learner)
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy_matrix"][-1] == in_memory.matrix.values[-1].tolist()
    assert {path.name for path in folder.iterdir()} <= OWN_FILES


def test_a_run_of_objects_is_reported_and_predicts_without_them(folder, tmp_path, capsys):
    assert main(["report", str(folder)]) == 0
    assert "| linear |" in capsys.readouterr().out
    image = tmp_path / "image.png"
    Image.fromarray(toy.make_stream().test[np.array([0])][0]).save(image)
    assert main(["predict", str(folder), str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}  ")


@pytest.mark.parametrize("command", ["evaluate", "reproduce"])
def test_what_needs_the_objects_is_refused_in_a_line(command, folder, tmp_path, capsys):
    options = ["--run", str(tmp_path / "again")] if command == "reproduce" else []
    assert main([command, str(folder), *options]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "given its stream and backbone as Python objects" in err


def darker(stream: px.data.TaskStream) -> px.data.TaskStream:
    """The same labels, tasks and name, with other pixels."""
    images = stream.train[np.arange(len(stream.train.labels))]
    return replace(stream, train=px.data.ArraySource(images // 2, stream.train.labels))


class Stop(px.Callback):
    """Ends the run after its first task, as an exception of the user's would."""

    def __init__(self):
        self.left = []

    def on_start(self, steps):
        self.left.append(steps)

    def on_task(self, event):
        if event.task_number == 0:
            raise ArithmeticError


def test_it_is_resumed_with_the_same_objects_and_no_others(mesh, in_memory, tmp_path):
    run = tmp_path / "run"
    watch = Stop()
    with pytest.raises(ArithmeticError):
        fit(mesh, run, callbacks=[watch])
    with pytest.raises(px.UserError, match="exists") as refused:
        fit(mesh, run)
    assert f"go on with run=px.Run('{run}', resume=True), start again with" in str(refused.value)
    resumed = px.Run(run, resume=True)
    other = replace(toy.make_stream(), class_names=tuple("abcdefg"))
    with pytest.raises(px.UserError, match=r"stream\.sha256 was"):
        fit(mesh, resumed, stream=other)
    with pytest.raises(px.UserError, match=r"stream\.images_sha256 was"):
        fit(mesh, resumed, stream=darker(toy.make_stream()))
    fitted = fit(mesh, resumed, callbacks=[watch])
    assert toy.same_bits(fitted.learner, in_memory.learner)
    assert np.array_equal(fitted.matrix.values, in_memory.matrix.values, equal_nan=True)
    whole, rest = watch.left
    assert 0 < rest < whole
    again = fit(mesh, resumed)  # nothing is left to train
    assert toy.same_bits(again.learner, in_memory.learner)


def test_settings_make_the_folder_that_the_command_line_makes(tiny, trained, tmp_path):
    made = json.loads((trained / "config.json").read_text())
    experiment = px.Experiment.from_json(made)
    px.fit(experiment.method, experiment.data, experiment.backbone, experiment.recipe, run=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == made
    assert not (tmp_path / "learner.npz").exists()
    assert toy.same_bits(px.load(tmp_path), px.load(trained))


def test_an_optimizer_of_optax_is_not_written_as_another(mesh, tmp_path):
    """Its config said Adam at 0.03, and a reproduction trained with that."""
    recipe = replace(toy.RECIPE, optimizer=px.Optax(transform=optax.sgd(0.1)))
    fitted = fit(mesh, tmp_path, recipe=replace(recipe, schedule=Schedule(1, 16)))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["given"] == ["stream", "backbone", "optimizer"]
    assert set(config["recipe"]["optimizer"]) == {"name", "clip_norm", "reset", "skip_nonfinite"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["effective_learning_rate"] is None
    assert toy.same_bits(px.load(tmp_path), fitted.learner)


class Scaled(toy.Pixels):
    """A method with a setting that is no number or text."""

    scale: object = abs


def test_what_no_config_can_hold_is_named_before_training(mesh, tmp_path):
    with pytest.raises(px.UserError, match=r"Scaled\.scale is a builtin_function_or_method"):
        fit(mesh, tmp_path, method=Scaled())
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_file_can_hold_is_trained_with_a_warning(mesh, tmp_path, caplog):
    class Activated(toy.Pixels):
        def init(self, backbone, stream, *, key):
            model, state = super().init(backbone, stream, key=key)
            return {**model, "activation": abs}, state

    recipe = replace(toy.RECIPE, schedule=Schedule(1, 16))
    fit(mesh, tmp_path, method=Activated(), recipe=recipe)
    (warning,) = [r.getMessage() for r in caplog.records if "cannot be saved" in r.getMessage()]
    assert "['activation'] is a builtin_function_or_method" in warning
    assert "`promptax predict` cannot open this run" in warning
    assert not (tmp_path / "learner.npz").exists()
    assert (tmp_path / "result.json").exists()
