"""Experiments by name: those of the papers, and those tuned for what comes with the package."""

import dataclasses
from collections.abc import Mapping

from promptax.config import Images, Optimizer, Protocol, Recipe, Schedule
from promptax.errors import unknown
from promptax.experiment import METHODS, Data, Experiment
from promptax.methods import L2P, DualPrompt, Finetune, Joint, Linear

BOX_IMAGES = Images(size=32, resize=None, crop_area=(1.0, 1.0))
"""Small grey images as they are, mirrored."""


def _box(stream: str, method, learning_rate: float, epochs: int = 1, batch_size: int = 50):
    optimizer = Optimizer(learning_rate=learning_rate)
    recipe = Recipe(optimizer, Schedule(epochs, batch_size), BOX_IMAGES, Protocol())
    return Experiment(method, Data(stream), recipe=recipe)


PRESETS: Mapping[str, Experiment] = {
    "split-fashion-mnist-l2p": _box(
        "split-fashion-mnist", L2P(prompt_length=5, vote_group=10), 0.03
    ),
    "split-fashion-mnist-dualprompt": _box("split-fashion-mnist", DualPrompt(), 0.03),
    "split-fashion-mnist-finetune": _box("split-fashion-mnist", Finetune(), 0.005),
    "split-fashion-mnist-linear": _box("split-fashion-mnist", Linear(), 0.03),
    "split-fashion-mnist-joint": _box("split-fashion-mnist", Joint(), 0.03),
}


def preset(name: str) -> Experiment:
    """A preset by its name. Raises `UserError` with the nearest one if there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def default_for(method: str, stream: str) -> Experiment:
    """The tuned preset of a method on a stream; on any other stream, that of the first box
    stream with the stream put in its place. Raises `UserError` for an unknown method."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if f"{stream}-{method}" in PRESETS:
        return PRESETS[f"{stream}-{method}"]
    fallback = PRESETS[f"split-fashion-mnist-{method}"]
    return dataclasses.replace(fallback, data=dataclasses.replace(fallback.data, stream=stream))
