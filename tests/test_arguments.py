"""What `fit`, `Trainer` and `Learner` are given in Python: mistakes are answered in a line."""

import dataclasses
import logging

import jax.random as jr
import jaxtyping
import numpy as np
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
    ],
)
def test_wrong_arguments_are_named_in_a_line(wrong, words, without_type_checker):
    with pytest.raises(px.UserError) as caught:
        px.fit(**(GOOD | wrong))
    message = str(caught.value)
    assert [word for word in words.split() if word not in message] == [], message
    assert "\n" not in message


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
    assert in_flags("px.methods.L2P() of Images(...)") == "px.methods.L2P() of Images(...)"
