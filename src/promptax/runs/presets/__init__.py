"""Experiments by name: those of the papers, and those tuned for what comes with the package."""

import dataclasses
from collections.abc import Mapping

from promptax.core.errors import UserError, unknown
from promptax.methods.registry import method_class
from promptax.runs.experiment import Experiment
from promptax.runs.presets.bundled import BUNDLED_PRESETS as BUNDLED_PRESETS
from promptax.runs.presets.bundled import bundled_recipe as bundled_recipe
from promptax.runs.presets.departures import departures as departures
from promptax.runs.presets.papers import PAPER_PRESETS as PAPER_PRESETS
from promptax.runs.presets.published import FIGURES as FIGURES
from promptax.runs.presets.published import PUBLISHED as PUBLISHED
from promptax.runs.presets.published import Published as Published

PRESETS: Mapping[str, Experiment] = {**BUNDLED_PRESETS, **PAPER_PRESETS}
PLAINEST = "linear"
"""The method whose preset serves a method that has none of its own."""


def preset(name: str) -> Experiment:
    """A preset by its name. Raises `UserError` with the nearest one if there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def default_for(method: str, stream: str, *, joint: bool = False) -> Experiment:
    """The experiment that a method starts from on a stream, before any flag changes it.

    This is the preset of the method on the stream. Failing that, it is the method with its own
    defaults, and the recipe and weights of the stream's presets; failing that too, those of the
    bundled Fashion-MNIST, with the stream put in its place.

    Args:
        method: The name of the method.
        stream: The name of the stream.
        joint: Prefer a preset that trains on all tasks at once, if there is one.

    Raises:
        UserError: There is no such method, or it needs settings that have no default.
    """
    kind = method_class(method)
    of_stream = [known for known in PRESETS.values() if known.data.stream == stream]
    own = [known for known in of_stream if type(known.method) is kind]
    for trains_jointly in (joint, False):
        for known in own:
            if known.data.joint == trains_jointly:
                return known
    if of_stream:
        return dataclasses.replace(of_stream[0], method=with_defaults(method))
    fallback = PRESETS.get(f"split-fashion-mnist-{method}")
    if fallback is None:
        plainest = PRESETS[f"split-fashion-mnist-{PLAINEST}"]
        fallback = dataclasses.replace(plainest, method=with_defaults(method))
    return dataclasses.replace(fallback, data=dataclasses.replace(fallback.data, stream=stream))


def with_defaults(method: str):
    """A method with the default of each of its fields.

    Raises:
        UserError: A field has no default, so the command line has nothing to start from.
    """
    kind = method_class(method)
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise UserError(
            f"the method {method} has no default for {', '.join(required)}: give each field one, "
            "so that the command line has values to start from."
        )
    return kind()
