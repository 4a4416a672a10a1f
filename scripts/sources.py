"""Write the table of the paper presets: each value, and the line of the authors' code it is from.

    python scripts/sources.py                   # writes src/promptax/runs/presets/README.md
    python scripts/sources.py --clones CLONES   # also looks every line up in the authors' code

The values and their sources are in `sources.toml` beside the presets. `tests/test_presets.py`
checks that the presets have these values, and that README.md is what this script writes. `CLONES`
is a folder with a clone of each repository under its name, such as `CLONES/google-research/l2p`;
the commits are in the file.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import tyro
from table import markdown

from promptax.core.settings import Images
from promptax.data.benchmark import BENCHMARKS, Kind
from promptax.methods.base import AbstractMethod
from promptax.runs.experiment import Experiment
from promptax.runs.presets import FIGURES, PAPER_PRESETS
from promptax.training.optimizer import REFERENCE_BATCH

FOLDER = Path(__file__).parents[1] / "src" / "promptax" / "runs" / "presets"
README = FOLDER / "README.md"
ARCHITECTURE = "vit_base_patch16_224."
"""The architecture of all weights in the presets."""
LOSS_WEIGHTS = ("pull", "orthogonality", "contrast", "temperature", "backbone_rate", "head_rate")
"""Fields of methods that weigh terms of the loss, or learning rates, against each other."""
ORDER_OF_KIND: Mapping[Kind, str] = {
    "domains": "sessions in order",
    "sets": "sets in order",
    "gaussian": "all, fading in and out",
}
"""What is said of streams whose tasks are not new classes, instead of the order of classes."""
INTRODUCTION = """\
# Where the values of the paper presets come from

Written by `python scripts/sources.py` from `sources.toml`, which has the source of every value. The
presets themselves are in `papers.py`; a test checks that they have these values. With `--clones
CLONES`, the script looks up every quoted line in clones of the authors' repositories.

All weights are of ViT-B/16. The tables give the recipe in timm's tag `vit_base_patch16_224.RECIPE`:
`orig_in21k` is the first release (`ViT-B_16.npz`), `augreg_in21k` the one of "How to train your
ViT?", and `augreg_in21k_ft_in1k` the latter after fine-tuning on ImageNet-1k. Accuracies with
different weights cannot be compared. Rates are those in effect at the batch size next to them. No
preset has a replay buffer: ER and DER++, like EWC and LwF, have no preset of a paper, since their
authors trained small ResNets from scratch.
"""


@dataclass(frozen=True)
class Value:
    """A value of a preset, and where the authors' code has it."""

    setting: str
    """Path of the field in the preset; `rate` is the learning rate at the preset's batch size."""
    value: Any
    repository: str
    """OWNER/NAME on GitHub."""
    commit: str
    file: str
    line: int
    quote: str
    """Part of the line."""
    note: str

    @property
    def address(self) -> str:
        """The line on GitHub."""
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.file}#L{self.line}"


@dataclass(frozen=True)
class Sources:
    """The content of `sources.toml`."""

    values: Mapping[str, Sequence[Value]]
    """By preset."""
    differences: Mapping[str, Sequence[str]]
    """By preset: what it does not do as the authors do it."""

    @classmethod
    def read(cls) -> "Sources":
        """Read the file."""
        content = tomllib.loads((FOLDER / "sources.toml").read_text())
        repositories = content["repositories"]

        def value(row: dict[str, Any]) -> Value:
            at, _, line = row["at"].rpartition(":")
            repository, _, file = at.partition("/")
            return Value(
                setting=row["setting"],
                value=row["value"],
                repository=repositories[repository]["name"],
                commit=repositories[repository]["commit"],
                file=file,
                line=int(line),
                quote=row["quote"],
                note=row.get("note", ""),
            )

        values = {name: [value(row) for row in rows] for name, rows in content["values"].items()}
        return cls(values, content["differences"])


def setting_of(preset: Experiment, setting: str) -> Any:
    """The value of a setting, in the types that TOML has: a list for a tuple, "none" for None."""
    if setting == "rate":
        optimizer = preset.recipe.optimizer
        return optimizer.learning_rate * preset.recipe.schedule.batch_size / REFERENCE_BATCH
    if setting == "order":
        return order_of(preset)
    value = attrgetter(setting)(preset)
    if value is None:
        return "none"
    return list(value) if isinstance(value, tuple) else value


def order_of(preset: Experiment) -> str:
    """The order of classes, or of what else tasks are made of, in words."""
    data = preset.data
    benchmark = BENCHMARKS[data.stream]
    if benchmark.kind != "classes":
        return ORDER_OF_KIND[benchmark.kind]
    if not data.shuffle_classes:
        return "ascending"
    seed = "the seed of the run" if data.class_seed is None else f"seed {data.class_seed}"
    return f"by {seed} as in {data.shuffle_like}"


def missing_lines(sources: Sources, clones: Path) -> Iterator[str]:
    """Look every quoted line up at its commit, and describe those that are not there."""
    files: dict[tuple[str, str], list[str]] = {}
    for name, values in sources.values.items():
        for value in values:
            key = (value.repository, value.file)
            if key not in files:
                show = ["git", "show", f"{value.commit}:{value.file}"]
                place = clones / value.repository
                shown = subprocess.run(show, cwd=place, capture_output=True, text=True, check=True)
                files[key] = shown.stdout.splitlines()
            line = files[key][value.line - 1]
            if value.quote not in line:
                yield f"{name}: {value.setting}: {value.address} is {line.strip()!r}"


def images_in_words(images: Images) -> str:
    """The preparation of images, in a cell of a table."""
    smallest, largest = images.crop_area
    side = images.resize or images.size
    parts = [
        f"shorter side {side}" if images.keep_aspect else f"square of {side}",
        f"{images.size} of it" if side > images.size else "",
        images.interpolation if images.antialias else f"{images.interpolation} without antialias",
        "" if smallest == 1 else f"random crop of {smallest:.0%} to {largest:.0%}",
        "mirrored" if images.flip else "",
        f"brightness ± {images.augment.brightness:.3f}" if images.augment.brightness else "",
        f"normalisation {images.normalisation}",
    ]
    return ", ".join(part for part in parts if part)


def loss_weights(method: AbstractMethod) -> str:
    """The weights of a method's terms and rates, in a cell of a table."""
    own = [name for name in LOSS_WEIGHTS if hasattr(method, name)]
    return ", ".join(f"{name} {getattr(method, name):g}" for name in own) or "none"


OVERVIEW = (
    "preset",
    "weights",
    "images",
    "optimizer, rate at batch",
    "schedule",
    "epochs",
    "loss weights",
    "buffer",
    "classes",
)


def overview_row(name: str, preset: Experiment) -> list[str]:
    """A row of the table of all presets, in the order of `OVERVIEW`."""
    optimizer = preset.recipe.optimizer
    schedule = preset.recipe.schedule
    rate = f"{setting_of(preset, 'rate'):.6g} at {schedule.batch_size}"
    is_trained = preset.method.loss is not None
    return [
        f"[{name}](#{name})",
        preset.backbone.weights.removeprefix(ARCHITECTURE),
        images_in_words(preset.recipe.images),
        f"{optimizer.name}, {rate}" if is_trained else "no training",
        optimizer.schedule if is_trained else "-",
        str(schedule.epochs),
        loss_weights(preset.method),
        str(preset.replay.buffer_size or "none"),
        order_of(preset),
    ]


def figures_table() -> str:
    """The published accuracies."""
    head = ("method", "benchmark", "accuracy", "forgetting", "metric", "weights", "split")
    rows = [
        [
            figure.method,
            figure.benchmark,
            str(figure.accuracy),
            "-" if figure.forgetting is None else str(figure.forgetting),
            figure.metric,
            figure.weights.removeprefix(ARCHITECTURE),
            figure.split,
            figure.order,
            figure.source,
        ]
        for figure in FIGURES
    ]
    return markdown([(*head, "classes", "source"), *rows])


def section(name: str, sources: Sources) -> str:
    """The values of a preset, with their sources."""
    rows = [
        [
            f"`{value.setting}`",
            in_words(value.value),
            f"`{value.quote}`" + (f" ({value.note})" if value.note else ""),
            f"[{value.file}:{value.line}]({value.address})",
        ]
        for value in sources.values[name]
    ]
    repository = sources.values[name][0].repository
    head = ("setting", "value", "the authors' code", f"in {repository}")
    parts = [f"## {name}", markdown([head, *rows])]
    if name in sources.differences:
        lines = "\n".join(f"- {line}" for line in sources.differences[name])
        parts.append(f"What differs from the authors' code:\n\n{lines}")
    return "\n\n".join(parts)


def in_words(value: Any) -> str:
    """A value in a cell of a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def readme(sources: Sources) -> str:
    """The content of README.md."""
    rows = [overview_row(name, preset) for name, preset in PAPER_PRESETS.items()]
    parts = [
        INTRODUCTION.rstrip(),
        markdown([OVERVIEW, *rows]),
        "## Published figures",
        "After the last task, in percent: the mean of the tasks' accuracies, or the accuracy over\n"
        "all test images. No figure is averaged over stages.",
        figures_table(),
        *(section(name, sources) for name in PAPER_PRESETS),
    ]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Write:
    """Write the table of the paper presets, and look its sources up."""

    clones: Path | None = None
    """Folder with clones of the authors' repositories, as OWNER/NAME, to look every line up in."""


def main(flags: Write) -> int:
    """Write README.md. Return the exit code: 1 if a quoted line was not found."""
    sources = Sources.read()
    README.write_text(readme(sources))
    problems = [] if flags.clones is None else list(missing_lines(sources, flags.clones))
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Write)))
