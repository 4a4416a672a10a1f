"""What `fit`, `Trainer` and `Learner` are given in Python: mistakes are answered in a line."""

import ast
import dataclasses
import json
import logging
import re
from pathlib import Path

import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest
import toy

import promptax as px
from promptax.cli.output import in_flags
from promptax.training.arguments import warn_of_few_steps


@pytest.fixture
def without_type_checker():
    """Users have no type checker at run time, which would object first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


GOOD = {
    "method": px.methods.LinearProbe(),
    "stream": toy.make_stream(),
    "backbone": toy.make_vit(),
    "recipe": toy.RECIPE,
}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "l2p"}, "method str px.methods.L2P()"),
        ({"method": px.methods.L2P}, "the class L2P an instance"),
        ({"stream": (1, 2)}, "stream tuple TaskStream px.data.class_incremental"),
        ({"backbone": "glyph-vit"}, "backbone str px.nn.load_vit('glyph-vit')"),
        ({"backbone": None}, "backbone NoneType px.nn.load_vit"),
        ({"recipe": {"epochs": 3}}, "recipe dict px.Recipe"),
        ({"recipe": px.Schedule()}, "recipe Schedule px.Recipe"),
        ({"recipe": px.Recipe()}, "224 x 224 16 x 16 Images(size=16)"),
        ({"seed": -1}, "seed -1 number from 0"),
        ({"seed": 2.5}, "seed 2.5 number from 0"),
        ({"mesh": 5}, "mesh int jax.make_mesh"),
        ({"callbacks": 5}, "callbacks 5 list px.Callback"),
        ({"callbacks": [5]}, "callbacks 5 px.Callback"),
        ({"callbacks": [px.ProgressBar]}, "callbacks ProgressBar instances"),
        ({"run": 5}, "Run.folder 5 text Path"),
        ({"run": []}, "Run.folder [] text Path"),
        ({"run": True}, "Run.folder True text Path"),
    ],
)
def test_wrong_arguments_are_named_in_a_line(wrong, words, without_type_checker):
    with pytest.raises(px.UserError) as caught:
        px.fit(**(GOOD | wrong))
    message = str(caught.value)
    assert [word for word in words.split() if word not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize("wrong", [{"folder": None}, {"saving": 5}, {"resume": "no"}])
def test_a_run_checks_its_fields(wrong, without_type_checker):
    (name,) = wrong
    with pytest.raises(px.UserError, match=f"Run.{name} is .*; expected"):
        px.Run(**({"folder": "runs/mine"} | wrong))


def test_a_seed_of_numpy_is_a_plain_number_in_the_config(without_type_checker):
    experiment = px.Experiment(px.methods.LinearProbe(), seed=np.int64(3))  # pyright: ignore[reportArgumentType]
    assert json.dumps(experiment.to_json()["seed"]) == "3"


def test_a_state_is_given_to_one_step_only(mesh):
    trainer, state = px.Trainer.create(
        toy.Pixels(), toy.make_vit(), toy.make_stream(), toy.RECIPE, mesh=mesh, key=jr.key(0)
    )
    task = trainer.task(toy.make_stream(), 0)
    (batch, *_) = trainer.batches(toy.make_stream(), 0, seed=0)
    trainer.step(state, batch, task)
    with pytest.raises(px.UserError, match="given to an earlier step"):
        trainer.step(state, batch, task)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (16, 16, 3)])
def test_a_single_image_is_not_taken_for_a_batch(fitted, shape):
    learner = fitted("linear").learner
    with pytest.raises(px.UserError, match=r"got one of shape .* `image\[None\]`"):
        learner(np.zeros(shape, np.uint8))
    assert learner(np.zeros(shape, np.uint8)[None]).shape == (1, toy.CLASSES)


def test_an_empty_batch_has_no_logits(fitted):
    learner = fitted("linear").learner
    none = np.zeros((0, 16, 16, 3), np.uint8)
    assert learner(none).shape == (0, toy.CLASSES)
    assert learner.probabilities(none).shape == (0, toy.CLASSES)
    assert learner.classify(none) == []


def test_what_is_no_array_is_refused(fitted, without_type_checker):
    with pytest.raises(px.UserError, match="an array of images, got a list"):
        fitted("linear").learner([[1, 2], [3, 4]])


def test_few_steps_are_warned_of_with_what_helps(caplog):
    stream = toy.make_stream()
    with caplog.at_level(logging.WARNING, "promptax"):
        warn_of_few_steps(px.Schedule(epochs=5, batch_size=128), stream)
    (record,) = caplog.records
    assert "task 1 has 23 training images" in record.message
    assert "only 1 steps" in record.message
    (epochs,) = [int(part.split(")")[0]) for part in record.message.split("epochs=")[1:]]
    enough = px.Schedule(epochs=epochs, batch_size=128)
    assert f"--epochs {epochs}" in in_flags(record.message)
    assert "--batch-size 16" in in_flags(record.message)
    caplog.clear()
    warn_of_few_steps(enough, stream)
    warn_of_few_steps(dataclasses.replace(enough, epochs=7, batch_size=5), stream)
    assert not caplog.records


def test_settings_are_shown_as_flags_on_the_command_line():
    assert in_flags("use Images(size=32), or") == "use --images.size 32, or"
    assert in_flags("Optimizer(weight_decay=0.1)") == "--weight-decay 0.1"
    assert in_flags("Metadata(heads=...)") == "--heads"
    assert in_flags("make_mesh(data=2, model=4)") == "--mesh.data 2 --mesh.model 4"
    assert in_flags("Distributed(on=True)") == "--distributed"
    assert in_flags("with prepare(damaged='skip').") == "with --skip-damaged."
    assert in_flags("px.methods.L2P() of Images(...)") == "px.methods.L2P() of Images(...)"


def texts_for_people(path):
    """The strings of a module, without those that document it."""
    tree = ast.parse(path.read_text())
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            yield "".join(text_of(value) or "" for value in node.values)
        elif id(node) not in parts and (text := text_of(node)) is not None:
            yield text


def text_of(node: ast.AST) -> str | None:
    """The text of a string in a program; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


@pytest.mark.parametrize("package", ["core", "data", "nn", "methods", "training"])
def test_the_library_names_no_flags_of_the_command_line(package):
    """Whole commands, in backticks, are for the command line wherever they are read."""
    named = []
    for path in sorted((Path(px.__file__).parent / package).rglob("*.py")):
        for text in texts_for_people(path):
            outside = re.sub(r"`[^`]*`", "", text)
            if re.search(r"(?<![\w-])--[a-z]", outside) and " " in text:
                named.append(f"{path.name}: {text}")
    assert not named


# --- callbacks, optimizers and files ---


@pytest.mark.parametrize("name", toy.slow_except(["linear"], ["l2p", "linear", "ranpac", "own"]))
def test_a_saved_learner_gives_the_same_bits(fitted, name, tmp_path):
    learner = fitted(name).learner
    learner.save(tmp_path / "learner.npz")
    again = px.load(tmp_path / "learner.npz", method=toy.Pixels)
    images = toy.make_stream().test[np.arange(8)]
    assert np.array_equal(again(images), learner(images))
    assert again.classify(images) == learner.classify(images)
    assert toy.same_bits(again, learner)


def test_a_file_makes_no_class_that_was_not_given(fitted, tmp_path):
    fitted("own").learner.save(tmp_path / "own.npz")
    with pytest.raises(px.UserError, match=r"a Pixels in it.*method=Pixels"):
        px.load(tmp_path / "own.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(px.UserError, match="not a learner that"):
        px.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(px.UserError, match=r"text\.npz"):
        px.load(tmp_path / "text.npz")


def test_what_cannot_be_saved_is_named(fitted, tmp_path):
    learner = dataclasses.replace(fitted("own").learner, state={"function": len})
    with pytest.raises(px.UserError, match=r"Learner\.state\['function'\] is a builtin"):
        learner.save(tmp_path / "learner.npz")
    assert not (tmp_path / "learner.npz").exists()


def fit(mesh, optimizer=None, **options):
    recipe = toy.recipe_for(toy.Pixels())
    if optimizer is not None:
        recipe = dataclasses.replace(recipe, optimizer=optimizer)
    return px.fit(toy.Pixels(), toy.make_stream(), toy.make_vit(), recipe, mesh=mesh, **options)


def test_callbacks_see_every_step_and_task_and_the_end(mesh, capsys):
    seen = toy.Seen()
    outcome = fit(mesh, callbacks=[seen], progress=True)
    assert seen.steps == seen.expected > 0
    assert [event.task_number for event in seen.tasks] == [0, 1, 2]
    assert seen.end is outcome
    err = capsys.readouterr().err
    assert f"{seen.steps}/{seen.steps}" in err
    assert outcome.matrix.average_accuracy is not None
    assert f"task 3/3  average accuracy {100 * outcome.matrix.average_accuracy:.2f} %" in err


def test_an_optimizer_of_optax_takes_the_place_of_ours(mesh):
    # SGD without momentum and clipping is the same in both; the rate is for a batch of 16.
    ours = px.Optimizer(name="sgd", learning_rate=0.16, momentum=0.0, clip_norm=None)
    theirs = px.Optax(transform=optax.sgd(optax.constant_schedule(0.01)))
    one, other = (fit(mesh, optimizer).learner.model for optimizer in (ours, theirs))
    np.testing.assert_allclose(one["head"].kernel, other["head"].kernel, rtol=1e-5, atol=1e-7)
    falling = px.Optax(transform=optax.sgd(optax.linear_schedule(0.01, 0.0, 5)))
    third = fit(mesh, falling).learner.model
    assert not np.allclose(one["head"].kernel, third["head"].kernel, atol=1e-4)


def test_what_is_no_transformation_is_refused(without_type_checker):
    with pytest.raises(px.UserError, match=r"is a str; expected one of optax"):
        px.Optax(transform="lion")  # pyright: ignore[reportArgumentType]
