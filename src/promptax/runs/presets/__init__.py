"""Experiments by name: those of the papers, and those tuned for what comes with the package."""

import dataclasses
from collections.abc import Mapping

from promptax.core.errors import unknown
from promptax.runs.experiment import METHODS, Experiment
from promptax.runs.presets.box import BOX_PRESETS as BOX_PRESETS
from promptax.runs.presets.box import box_recipe as box_recipe
from promptax.runs.presets.papers import PAPER_PRESETS as PAPER_PRESETS
from promptax.runs.presets.papers import PUBLISHED as PUBLISHED

PRESETS: Mapping[str, Experiment] = {**BOX_PRESETS, **PAPER_PRESETS}


def preset(name: str) -> Experiment:
    """A preset by its name. Raises `UserError` with the nearest one if there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def default_for(method: str, stream: str) -> Experiment:
    """The preset of a method on a stream.

    Where there is none, the method's own defaults with the recipe and weights of the papers on
    this stream; on a stream that no preset knows, the preset on Fashion-MNIST with the stream put
    in its place. Raises `UserError` for an unknown method.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    of_stream = [known for known in PRESETS.values() if known.data.stream == stream]
    for known in of_stream:
        if type(known.method) is METHODS[method]:
            return known
    if of_stream:
        return dataclasses.replace(of_stream[0], method=METHODS[method]())
    fallback = PRESETS[f"split-fashion-mnist-{method}"]
    return dataclasses.replace(fallback, data=dataclasses.replace(fallback.data, stream=stream))
