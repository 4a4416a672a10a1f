"""`promptax presets`: list the experiments that are ready to run, or show one of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from promptax.cli.data.table import columns, table
from promptax.cli.parse import parse
from promptax.runs.config import written_config
from promptax.runs.experiment import Experiment
from promptax.runs.presets import BUNDLED_PRESETS, PAPER_PRESETS, PUBLISHED, preset


@dataclass(frozen=True)
class Presets:
    """List the presets, or show all settings of one; `promptax train --preset NAME` runs it."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """The preset to show. What is printed is YAML, which `promptax train --config` reads."""


def run(argv: Sequence[str]) -> None:
    """Print a table of all presets, or the settings of one."""
    flags: Presets = parse(Presets, argv, prog="promptax presets")
    if flags.name is not None:
        print("\n".join(_described(flags.name)))
        return
    head = ("preset", "method", "data", "weights", "published")
    print("From papers (the published figure is the accuracy after the last task, in percent):\n")
    print(table([head, *(_row(name, known) for name, known in PAPER_PRESETS.items())]))
    print("\nTuned for the bundled data and the small ViT:\n")
    print(columns(list(BUNDLED_PRESETS)))
    print(
        "\n`promptax train --preset NAME` runs one, and `promptax presets NAME` shows all of its "
        "settings."
    )


def _row(name: str, experiment: Experiment) -> tuple[str, ...]:
    published = f"{PUBLISHED[name].accuracy:.2f}" if name in PUBLISHED else "-"
    weights = experiment.backbone.weights
    return (name, experiment.label, experiment.data.stream, weights, published)


def _described(name: str) -> Iterator[str]:
    """The settings of a preset as YAML, below what is known about it."""
    experiment = preset(name)
    yield f"# {name}: {experiment.label} on {experiment.data.stream}"
    if name in PUBLISHED:
        figure = PUBLISHED[name]
        forgotten = "" if figure.forgetting is None else f", forgetting {figure.forgetting} %"
        yield f"# published accuracy: {figure.accuracy} % ({figure.metric}{forgotten})"
        yield f"# train and test images: {figure.split}"
        yield f"# order of classes: {figure.order}"
        yield f"# source: {figure.source}"
    if experiment.method.loss is None:
        yield "# The method takes no training steps: optimizer and schedule have no effect."
    yield written_config(experiment).rstrip()
