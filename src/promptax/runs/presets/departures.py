"""Warnings about runs that start from a paper's preset and cannot be compared with the paper."""

from collections.abc import Iterator
from pathlib import Path

from promptax.nn.weights.cache import find_cached
from promptax.nn.weights.catalogue import CATALOGUE, Pretrained
from promptax.runs.experiment import Experiment
from promptax.runs.presets.papers import PAPER_PRESETS


def departures(start: Experiment, experiment: Experiment) -> Iterator[str]:
    """Compare the weights of an experiment with those of the preset that it started from.

    Args:
        start: The experiment before any flag changed it.
        experiment: The experiment that is to run.

    Yields:
        A warning if `start` is a paper's preset and the weights are not the ones that it names; and
        another if images are prepared as for the weights that it names, and not as for these.
    """
    name = next((name for name, preset in PAPER_PRESETS.items() if preset == start), None)
    given = experiment.backbone.weights
    named = CATALOGUE.get(start.backbone.weights)
    if name is None or named is None or _is_file_of(named, given):
        return
    yield (
        f"the preset {name} is for the weights '{named.tag}' ({named.trained_on}), and this run "
        f"has '{given}': its accuracy cannot be compared with the published one, nor with runs of "
        "this preset on its own weights."
    )
    known = CATALOGUE.get(given)
    used = experiment.recipe.images.normalisation
    # Authors, too, give their weights images of another normalisation: that is part of a preset.
    if known is not None and known.normalisation not in (used, named.normalisation):
        yield (
            f"the preset {name} scales pixels as its authors do (normalisation {used}), but "
            f"'{given}' was trained with {known.normalisation}: add --images.normalisation "
            f"{known.normalisation}."
        )


def _is_file_of(entry: Pretrained, weights: str) -> bool:
    """Whether weights are a checkpoint of the catalogue, as far as their name can tell."""
    path = Path(weights)
    # Google's files have names of their own. "model.safetensors" and "checkpoint.pth" tell nothing.
    has_own_name = entry.filename.endswith(".npz")
    if has_own_name and path.name == entry.filename:
        return True
    return weights == entry.tag or path == find_cached(entry)
