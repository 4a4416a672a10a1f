"""`promptax presets`: list the experiments that are ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptax.cli.parse import parse
from promptax.runs.presets import PRESETS, PUBLISHED


@dataclass(frozen=True)
class Presets:
    """List the presets; run one with `promptax train --preset NAME`."""


def run(argv: Sequence[str]) -> None:
    """Print a line for each preset: its settings, and the published accuracy, if known."""
    parse(Presets, argv, prog="promptax presets")
    width = max(map(len, PRESETS))
    for name, experiment in PRESETS.items():
        schedule = experiment.recipe.schedule
        optimizer = experiment.recipe.optimizer
        weights = experiment.backbone.weights
        published = f"; published: {PUBLISHED[name]}" if name in PUBLISHED else ""
        trained = (
            f"{schedule.epochs} epochs of batch {schedule.batch_size}, "
            f"{optimizer.name} at {optimizer.learning_rate:g}"
        )
        # Some methods take no training steps: they only collect statistics of the features.
        how = "no training steps" if experiment.method.loss is None else trained
        print(
            f"{name:<{width}}  {experiment.label} on {experiment.data.stream}, {how}, "
            f"weights {weights}{published}"
        )
