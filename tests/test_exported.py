"""`learner.export` and `promptax export`: a program that gives the learner's logits by itself."""

import json
import subprocess
import sys
from dataclasses import replace

import equinox as eqx
import jax
import jax.export
import jax.random as jr
import numpy as np
import pytest
import toy

import promptax
from promptax import nn
from promptax.cli import main
from promptax.core.errors import UserError
from promptax.training import exported
from promptax.training import learner as learners
from promptax.training.loop import make_learner
from promptax.training.trainer import Trainer

BUILTIN = sorted(set(toy.EVERY) - {"own"})


@pytest.fixture
def flatbuffers():
    """What `jax.export` writes files with, which a user installs with an extra."""
    pytest.importorskip("flatbuffers")


def untrained(method, mesh, backbone=None, images=toy.RECIPE.images):
    stream = toy.make_stream()
    recipe = replace(toy.RECIPE, images=images)
    trainer, state = Trainer.create(
        method, backbone or toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    learner = make_learner(trainer, stream, state, 1)
    # A head starts at zero, and equal logits would show nothing.
    noise = lambda leaf: leaf + 0.1 * jr.normal(jr.key(1), leaf.shape)
    inexact, other = eqx.partition(learner.model, eqx.is_inexact_array)
    return replace(learner, model=eqx.combine(jax.tree.map(noise, inexact), other))


def check(learner, path, shape=(16, 16, 3), batches=(1, 3, 8)):
    """The file gives the learner's logits for any number of images."""
    program = jax.export.deserialize(path.read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (max(batches), *shape), np.uint8)
    logits = np.asarray(learner(images))
    assert np.ptp(logits[:, np.asarray(learner.seen)], axis=0).min() > 1e-3
    for count in batches:
        np.testing.assert_allclose(
            program.call(images[:count]), logits[:count], rtol=1e-4, atol=1e-4
        )


@pytest.mark.usefixtures("flatbuffers")
def test_a_program_gives_the_logits_of_the_learner_for_any_number_of_images(mesh, tmp_path):
    learner = untrained(toy.METHODS["linear"], mesh)
    file = tmp_path / "new" / "model.jax"
    learner.export(file)
    exported.check_can_write(file)  # An earlier program may be replaced.
    check(learner, file, batches=(1, 3))
    program = jax.export.deserialize(file.read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    described = json.loads(exported.description_of(file).read_text())
    assert described["class_names"] == list(learner.class_names)
    assert described["seen"] == np.asarray(learner.seen).tolist()
    assert described["image_shape"] == [16, 16, 3]
    assert described["batch_size"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("flatbuffers")
@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_is_exported_as_it_was_trained(name, fitted, tmp_path):
    learner = fitted(name).learner
    learner.export(tmp_path / "model.jax")
    check(learner, tmp_path / "model.jax")


@pytest.mark.slow
@pytest.mark.usefixtures("flatbuffers")
@pytest.mark.parametrize(("size", "shape"), [(16, (24, 20, 3)), (32, (28, 28, 1))])
def test_images_of_another_shape_are_prepared_by_the_program(size, shape, mesh, tmp_path):
    resnet = lambda: nn.ResNet(nn.resnet_config("resnet-18", size), key=jr.key(0))
    backbone = resnet() if size == 32 else toy.make_vit()
    images = replace(
        toy.RECIPE.images, size=size, resize=40, keep_aspect=True, interpolation="bicubic"
    )
    learner = untrained(toy.METHODS["linear"], mesh, backbone, images)
    learner.export(tmp_path / "model.jax", image_shape=shape)
    check(learner, tmp_path / "model.jax", shape)


@pytest.mark.usefixtures("flatbuffers")
def test_what_needs_the_number_of_images_is_refused_or_exported_for_one_number(mesh, tmp_path):
    learner = untrained(toy.EVERY["own"], mesh)
    file = tmp_path / "model.jax"
    with pytest.raises(UserError, match="Pixels cannot be exported for any batch size"):
        learner.export(file)
    assert not list(tmp_path.iterdir())
    learner.export(file, batch_size=3, platforms=("cpu",))
    images = np.full((3, 16, 16, 3), 7, np.uint8)
    program = jax.export.deserialize(file.read_bytes())
    np.testing.assert_allclose(program.call(images), learner(images), rtol=1e-5)
    assert json.loads(exported.description_of(file).read_text())["batch_size"] == 3


@pytest.mark.usefixtures("flatbuffers")
@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("model.jax", {"image_shape": (16, 0, 3)}, "height and a width of at least 1"),
        ("model.jax", {"image_shape": (16, 16, 4)}, "1 or 3 channels"),
        ("model.jax", {"image_shape": (100_000, 100_000, 3)}, "at most 16384, and 1 or 3"),
        ("model.jax", {"batch_size": 0}, "batch size is 0"),
        ("model.jax", {"batch_size": 99_999_999_999}, "at least 1 and at most 1048576"),
        ("model.jax", {"platforms": ("cpu", "cpu")}, "each at most once"),
        ("model.jax", {"platforms": ()}, "cpu, cuda, rocm, tpu"),
    ],
)
def test_what_cannot_be_exported_is_refused(mesh, tmp_path, file, options, says):
    with pytest.raises(UserError, match=says):
        untrained(toy.METHODS["linear"], mesh).export(tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("flatbuffers")
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("", "is a folder"),
        ("/", "'/' is a folder"),
        ("folder", "'folder' is a folder"),
        ("/dev/null", "'/dev/null' is a device"),
        ("x" * 240, "cannot be written: File name too long"),
        ("keep.jax", r"'keep\.jax\.json' exists, and is not from an earlier export"),
        ("keep.npz", r"'keep\.npz' exists, and is not from an earlier export"),
        ("learner.npz", r"'learner\.npz' exists, and is not from an earlier export"),
        ("learner.npz/model.jax", "cannot be written: Not a directory"),
    ],
)
def test_a_program_takes_the_place_of_nothing_else(mesh, tmp_path, monkeypatch, file, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    texts = {"keep.jax.json": "[1]", "keep.npz": "mine", "learner.npz": "trained"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        untrained(toy.METHODS["linear"], mesh).export(file)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", *texts}
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "run/config.jax"], "is inside of the run folder"),
        (["run", "run/plots/model.jax"], "is inside of the run folder"),
        (["learner.npz", "learner.npz"], "is what is to be exported"),
        (["run", "run"], "is what is to be exported"),
    ],
)
def test_a_run_is_not_overwritten_by_its_program(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    texts = {"run/config.json": '{"schema": 1}', "learner.npz": "trained"}
    (tmp_path / "run").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert main(["export", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


def test_a_model_that_no_file_can_hold_and_a_missing_package_are_refused(
    mesh, tmp_path, monkeypatch
):
    learner = untrained(toy.METHODS["linear"], mesh)
    with monkeypatch.context() as patch:
        patch.setattr(exported, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'promptax\[export\]'"):
            learner.export(tmp_path / "model.jax")
    monkeypatch.setattr(exported, "find_spec", lambda name: name)
    monkeypatch.setattr(exported, "_MOST_BYTES", 1000)
    with pytest.raises(UserError, match="LinearProbe takes"):
        learner.export(tmp_path / "model.jax")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("flatbuffers")
def test_a_run_is_exported_and_read_by_jax_alone(trained, tmp_path, capsys):
    file = tmp_path / "model.jax"
    assert main(["export", str(trained), str(file), "--platforms", "cpu"]) == 0
    assert "model.jax.json" in capsys.readouterr().out
    shape = json.loads(exported.description_of(file).read_text())["image_shape"]
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import jax.export, numpy as np
program = jax.export.deserialize(open("model.jax", "rb").read())
np.save("logits.npy", program.call(np.load("images.npy")))
assert not [name for name in sys.modules if name.startswith(("promptax", "equinox"))]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    wanted = promptax.load(trained)(images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("flatbuffers")
def test_a_program_takes_images_of_the_shape_of_the_data_of_the_run(
    trained, mesh, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(learners, "serialized", lambda *_: b"program")
    untrained(toy.METHODS["linear"], mesh).save(tmp_path / "saved.npz")
    for source, options, shape in (
        (trained, [], (16, 16, 1)),
        (trained, ["--image-shape", "9", "8", "1"], (9, 8, 1)),
        (tmp_path / "saved.npz", [], (16, 16, 3)),
    ):
        assert main(["export", str(source), str(tmp_path / "model.jax"), *options]) == 0
        told = " x ".join(map(str, shape))
        assert f"model.jax.json (takes uint8 images of {told})\n" in capsys.readouterr().out
        assert json.loads((tmp_path / "model.jax.json").read_text())["image_shape"] == [*shape]


def test_the_attention_of_a_gpu_is_not_part_of_a_program(mesh):
    vit = toy.make_vit(execution=nn.Execution(attention="cudnn"))
    moved = exported.portable({"vit": vit, "names": ("a",)})
    assert moved["vit"].execution.attention == "plain"
    assert vit.execution.attention == "cudnn"
    assert moved["names"] == ("a",)
    assert toy.same_bits(moved["vit"], vit)
