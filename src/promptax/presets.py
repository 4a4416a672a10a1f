"""Experiments by name, tuned for what comes with the package by `scripts/tune.py`."""

import dataclasses
from collections.abc import Mapping

from promptax.config import Images, Optimizer, Protocol, Recipe, Schedule
from promptax.errors import unknown
from promptax.experiment import METHODS, Data, Experiment
from promptax.method import AbstractMethod
from promptax.methods import L2P, DualPrompt, Finetune, Joint, Linear

FASHION = Images(size=32, resize=None, crop_area=(1.0, 1.0))
"""Small grey images as they are; half of the training images mirrored."""
GLYPHS = dataclasses.replace(FASHION, flip=False)
"""Small grey images as they are: a mirrored letter is another one."""


def box_recipe(images: Images, learning_rate: float, epochs: int = 1) -> Recipe:
    """Adam at a constant rate, in batches of 32."""
    return Recipe(Optimizer(learning_rate=learning_rate), Schedule(epochs, 32), images, Protocol())


def _box(
    stream: str, images: Images, methods: Mapping[AbstractMethod, float]
) -> dict[str, Experiment]:
    names = {kind: name for name, kind in METHODS.items()}
    return {
        f"{stream}-{names[type(method)]}": Experiment(
            method, Data(stream), recipe=box_recipe(images, rate)
        )
        for method, rate in methods.items()
    }


PRESETS: Mapping[str, Experiment] = {
    **_box(
        "split-fashion-mnist",
        FASHION,
        {
            L2P(prompt_length=5, vote_group=None): 0.03,
            DualPrompt(): 0.03,
            Finetune(): 0.003,
            Linear(): 0.03,
            Joint(): 0.03,
        },
    ),
    **_box(
        "split-glyphs",
        GLYPHS,
        {
            L2P(prompt_length=5, vote_group=None): 0.03,
            DualPrompt(): 0.03,
            Finetune(): 0.003,
            Linear(): 0.03,
            Joint(): 0.03,
        },
    ),
    **_box(
        "glyph-domains",
        GLYPHS,
        {
            L2P(prompt_length=5, vote_group=None): 0.03,
            DualPrompt(): 0.03,
            Finetune(): 0.003,
            Linear(): 0.03,
            Joint(): 0.03,
        },
    ),
    "l2p-v1": Experiment(
        dataclasses.replace(L2P.v1(), vote_group=None),
        Data("split-fashion-mnist"),
        recipe=box_recipe(FASHION, 0.03),
    ),
}


def preset(name: str) -> Experiment:
    """A preset by its name. Raises `UserError` with the nearest one if there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def default_for(method: str, stream: str) -> Experiment:
    """The tuned preset of a method on a stream; on any other stream, that on Fashion-MNIST with
    the stream put in its place. Raises `UserError` for an unknown method."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if f"{stream}-{method}" in PRESETS:
        return PRESETS[f"{stream}-{method}"]
    fallback = PRESETS[f"split-fashion-mnist-{method}"]
    return dataclasses.replace(fallback, data=dataclasses.replace(fallback.data, stream=stream))
