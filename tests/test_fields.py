"""Settings in Python: every choice and every type is checked when it is given."""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeGuard

import jaxtyping
import pytest

import promptax as px
from promptax import methods, nn
from promptax.core import settings
from promptax.core.fields import _alternatives, check_fields
from promptax.data.benchmark import Benchmark
from promptax.methods.registry import builtin_methods
from promptax.nn.execution import Execution
from promptax.runs.experiment import Experiment
from promptax.runs.inputs import Backbone, Data
from promptax.training.exported import Signature

# As users without a type checker see them.
untyped: Any = px
untyped_data: Any = Data
untyped_signature: Any = Signature


@pytest.fixture(autouse=True)
def without_type_checker():
    """Users have no type checker at run time, which would object before the settings do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def is_settings(kind: Any) -> TypeGuard[Callable[[], Any]]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


INSTANCES: list[Any] = [
    *(kind() for kind in vars(settings).values() if is_settings(kind)),
    *(kind() for kind in builtin_methods().values()),
    Data(),
    Backbone(),
    Experiment(methods.LinearProbe()),
    Benchmark(("glyphs",)),
    Execution(),
    nn.SIZES["vit-b/16"],
    nn.RESNETS["resnet-18"],
]


def choices(instance):
    """The fields of a class that have a `Literal` type."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        kinds = _alternatives(hints[field.name])
        if any(typing.get_origin(kind) is Literal for kind in kinds):
            yield field.name


CHOICES = [(instance, name) for instance in INSTANCES for name in choices(instance)]


def test_there_are_choices_in_every_part():
    named = {f"{type(instance).__name__}.{name}" for instance, name in CHOICES}
    assert {"Optimizer.name", "Evaluation.classes", "Backbone.dtype", "NCM.metric"} <= named
    assert {"Data.kind", "Benchmark.kind", "Execution.remat", "ResNetConfig.block"} <= named


@pytest.mark.parametrize(
    ("instance", "name"), CHOICES, ids=[f"{type(x).__name__}-{name}" for x, name in CHOICES]
)
def test_a_choice_that_there_is_not_is_refused(instance, name):
    with pytest.raises(px.UserError, match=rf"\.{name} is 'nonsense'.* [Ee]xpected"):
        dataclasses.replace(instance, **{name: "nonsense"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: untyped.Optimizer(name="adan"), "Optimizer.name 'adan' did you mean 'adam' 'sgd'"),
        (lambda: untyped.Optimizer(schedule="cosin"), "did you mean 'cosine'?"),
        (lambda: untyped.Evaluation(classes="alll"), "did you mean 'all'?"),
        (lambda: untyped.Optimizer(learning_rate="0.1"), "learning_rate '0.1' (str) a number"),
        (lambda: untyped.Schedule(epochs=1.5), "Schedule.epochs 1.5 (float) a whole number"),
        (lambda: untyped.Schedule(epochs=True), "Schedule.epochs True (bool) a whole number"),
        (lambda: untyped.Images(flip=1), "Images.flip 1 (int) True or False"),
        (lambda: untyped.Images(resize="256"), "a whole number or None"),
        (
            lambda: untyped.Images(crop_area=[0.5, 1.0]),
            "Images.crop_area (list) a tuple of numbers",
        ),
        (lambda: untyped.Images(crop_area=(0.5,)), "Images.crop_area (0.5,)"),
        (lambda: untyped.Recipe(px.Schedule()), "Recipe.optimizer an instance of Optimizer"),
        (lambda: untyped_data(train="images.npz"), "Data.train an instance of Path or None"),
        (lambda: untyped_signature((28, 28)), "Signature.image_shape (28, 28) tuple of numbers"),
        (lambda: untyped_signature("abc"), "Signature.image_shape 'abc' (str) a tuple"),
        (lambda: untyped_signature((28.0, 28, 1)), "Signature.image_shape (28.0, 28, 1)"),
        (lambda: untyped_signature((8, 8, 3), 2.5), "batch_size 2.5 (float) a whole number"),
        (lambda: untyped_signature((8, 8, 3), "4"), "batch_size '4' (str) a whole number"),
        (lambda: untyped_signature((8, 8, 3), True), "batch_size True (bool) a whole number"),
        (lambda: untyped_signature((8, 8, 3), 1, "cpu"), "platforms 'cpu' cpu, cuda, rocm, tpu"),
        (lambda: untyped_signature((8, 8, 3), 1, ("gpu",)), "platforms ('gpu',) cuda, rocm, tpu"),
        (lambda: untyped.methods.NCM(metric="cosinus"), "NCM.metric did you mean 'cosine'?"),
    ],
)
def test_what_came_and_what_was_expected_are_named(make, words):
    with pytest.raises(px.UserError) as caught:
        make()
    assert [word for word in words.split() if word not in str(caught.value)] == []


def test_what_fits_is_taken():
    assert px.Optimizer(learning_rate=1, clip_norm=None).learning_rate == 1
    assert Data(train=Path("a.npz"), task_sizes=(1, 2)).task_sizes == (1, 2)

    @dataclasses.dataclass
    class Own:
        unknown: "Nowhere"  # pyright: ignore[reportUndefinedVariable]

    check_fields(Own(1))
