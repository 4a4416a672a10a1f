"""Train every method on every stream that comes with the package, and write one table.

    python scripts/table.py --out table.md --figure table.png

Each method is run with its preset, once for every seed. Finished runs are skipped and interrupted
ones go on, so the same command can be run again after a kill. A run that fails is reported at the
end, and does not stop the others. Means and standard deviations (n - 1) are over the finished
seeds. The output is one table of all streams, a table of each stream, and a table of what papers
report on benchmarks that are not in the package.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import tyro
from flops import inference_flops
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptax.core.allocator import keep_freed_memory
from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.methods.registry import builtin_methods
from promptax.methods.rehearsal import AbstractRehearsal
from promptax.runs.experiment import Experiment
from promptax.runs.folder import RunFolder
from promptax.runs.plot import Theme, colours_of, panels, save, style
from promptax.runs.presets import FIGURES, preset
from promptax.runs.report import Group, group, percent
from promptax.runs.results import Result
from promptax.runs.runner import train

METHODS = (*builtin_methods(), "joint")
"""Names of methods in the names of presets."""
COLUMNS = (
    "method",
    "average accuracy (%)",
    "forgetting (%)",
    "seeds",
    "trained parameters",
    "buffer (images)",
    "memory (kB)",
    "training (s)",
    "inference (MFLOPs an image)",
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Train methods on streams, and write a table of the results."""

    streams: tuple[str, ...] = ("split-glyphs", "split-fashion-mnist", "glyph-domains")
    """Streams that come with the package."""
    methods: tuple[str, ...] = METHODS
    """Methods to train."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: one run of each method and stream for each of them."""
    per_class: int | None = None
    """Largest number of training examples of each class, for a quick trial. None: all."""
    runs: Path = Path("runs/table")
    """Folder of the runs, which are in STREAM/METHOD/seed-N."""
    out: Path | None = None
    """File to write the tables to, instead of printing them."""
    figure: Path | None = None
    """PNG file to draw the accuracies into; one for dark pages gets `-dark` in its name."""

    def experiments(self) -> Iterator[tuple[Experiment, Path]]:
        """The experiments and their folders, ordered so that seeds share compiled steps."""
        for stream in self.streams:
            for method in self.methods:
                tuned = preset(f"{stream}-{method}")
                data = dataclasses.replace(tuned.data, per_class=self.per_class)
                for seed in self.seeds:
                    experiment = dataclasses.replace(tuned, data=data, seed=seed)
                    yield experiment, self.runs / stream / method / f"seed-{seed}"


def finished(experiment: Experiment, path: Path) -> Result | None:
    """The result of a run, or None if it is missing, incomplete or of other settings."""
    folder = RunFolder(path)
    if not folder.readable(folder.config) or not folder.readable(folder.result):
        return None
    result = folder.read(folder.result)
    done = result["tasks_done"] == len(result["accuracy_matrix"])
    return result if done and Experiment.from_json(result["config"]) == experiment else None


def results_of(flags: Table) -> tuple[list[Result], list[str]]:
    """Train all runs that are not finished; return all results, and a line for each failure."""
    results: list[Result] = []
    failed: list[str] = []
    last = None
    for experiment, path in flags.experiments():
        if path.parent != last:
            # Another method or stream shares no compiled step, and each one maps memory.
            jax.clear_caches()
        last = path.parent
        try:
            result = finished(experiment, path) or train(experiment, path, resume=True)
        except Exception as error:  # a failure of whatever kind must not stop the others
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failed.append(f"{path}: {kind}{error}")
            print(failed[-1], file=sys.stderr, flush=True)
        else:
            # The tables have the names of presets: `joint`, which is the linear probe on all tasks.
            results.append({**result, "method": path.parent.name})
            print(f"{path}: {100 * result['average_accuracy']:.2f} %", file=sys.stderr, flush=True)
    return results, failed


def row(runs: Group) -> list[str]:
    """A row of the table of one stream, in the order of `COLUMNS`."""
    first = runs.results[0]
    # Other work on the machine makes a run slower and never faster.
    fastest = min(result["timing"]["train"] for result in runs.results)
    return [
        runs.name,
        percent(runs.mean_and_deviation("average_accuracy")),
        percent(runs.mean_and_deviation("forgetting")),
        str(len(runs.results)),
        f"{first['parameters']['trainable']:,}",
        f"{buffer_size(first):,}",
        f"{first['memory_bytes'] / 1000:,.0f}",
        f"{fastest:.1f}",
        f"{flops(first) / 1e6:.1f}",
    ]


def buffer_size(result: Result) -> int:
    """Number of images in the replay buffer of a run; 0 without one."""
    learner = Experiment.from_json(result["config"]).learner()
    replay = learner.replay if isinstance(learner, AbstractRehearsal) else Replay()
    return replay.capacity(len(result["stream"]["class_names"]))


def flops(result: Result) -> int:
    """Floating-point operations of a prediction for one image, from the shapes of the model."""
    experiment = Experiment.from_json(result["config"])
    size = experiment.recipe.images.size
    stream = experiment.data.load(experiment.seed)
    backbone, _ = experiment.backbone.load(size)
    method = experiment.learner()
    init = lambda: method.init(backbone, stream, key=jr.key(0))
    model, state = eqx.filter_eval_shape(init)
    return inference_flops(method, model, state, size)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is its head."""
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def overview(groups: Sequence[Group]) -> str:
    """Accuracy and forgetting on all streams, and the costs on the first of them."""
    streams = list(dict.fromkeys(runs.stream for runs in groups))
    rows = {(runs.name, runs.stream): row(runs) for runs in groups}
    missing = ["-"] * len(COLUMNS)
    costs = slice(COLUMNS.index("trained parameters"), None)
    accuracies = slice(COLUMNS.index("average accuracy (%)"), COLUMNS.index("seeds"))
    head = ["method", *(name for stream in streams for name in (stream, "forgetting"))]
    lines = [[*head, *COLUMNS[costs]]]
    for name in dict.fromkeys(runs.name for runs in groups):
        cells = [rows.get((name, stream), missing) for stream in streams]
        measured = [cell for part in cells for cell in part[accuracies]]
        lines.append([name, *measured, *cells[0][costs]])
    return markdown(lines)


def tables(groups: Sequence[Group]) -> str:
    """All tables: of all streams together, of each stream, and of what papers report."""
    parts = [overview(groups)] if groups else []
    for stream in dict.fromkeys(runs.stream for runs in groups):
        rows = [row(runs) for runs in groups if runs.stream == stream]
        parts += [f"**{stream}**", markdown([COLUMNS, *rows])]
    return "\n\n".join([*parts, quoted()])


def quoted() -> str:
    """The table of what papers report."""
    head = ("method", "benchmark", "accuracy / forgetting (%)", "weights", "split", "classes")
    rows = [
        [
            figure.method,
            figure.benchmark,
            f"{figure.accuracy} / {'-' if figure.forgetting is None else figure.forgetting}",
            figure.weights,
            figure.split,
            figure.order,
            figure.metric,
            figure.source,
        ]
        for figure in FIGURES
    ]
    title = "**Quoted**, not measured here: after the last task, with ViT-B/16"
    return f"{title}\n\n{markdown([(*head, 'metric', 'source'), *rows])}"


def draw(groups: Sequence[Group], path: Path) -> None:
    """Draw the average accuracies, once for light pages and once for dark ones."""
    draw_standings(groups, path, "light")
    draw_standings(groups, path.with_stem(f"{path.stem}-dark"), "dark")


def draw_standings(groups: Sequence[Group], path: Path, theme: Theme) -> None:
    """Draw the average accuracy of methods, best first, in a panel for each stream.

    Bars show one standard deviation over seeds.
    """
    streams = list(dict.fromkeys(runs.stream for runs in groups))
    rows = max(sum(runs.stream == stream for runs in groups) for stream in streams)
    with style(theme):
        size = (0.6 + 3.4 * len(streams), 1.2 + 0.24 * rows)  # inches
        figure = Figure(figsize=size, layout="constrained")
        for axes, stream in zip(panels(figure, len(streams)), streams, strict=True):
            draw_panel(axes, [runs for runs in groups if runs.stream == stream])
            axes.set_title(stream)
        save(figure, path)


def draw_panel(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw the standings on one stream."""
    scores = [100 * np.array([r["average_accuracy"] for r in runs.results]) for runs in groups]
    order = sorted(range(len(groups)), key=lambda n: scores[n].mean())
    colours = colours_of(groups)
    for place, n in enumerate(order):
        deviation = scores[n].std(ddof=1) if len(scores[n]) > 1 else 0.0
        options = {"fmt": "o", "ms": 4, "capsize": 2, "color": colours[n]}
        axes.errorbar(scores[n].mean(), place, xerr=deviation, **options)
    axes.set_yticks(range(len(order)), [groups[n].name for n in order])
    # Points need no axis from 0, which would hide their differences.
    lowest = max(0.0, 10 * math.floor(min(score.min() for score in scores) / 10))
    axes.set(xlabel="average accuracy (%)", xlim=(lowest, 100))
    axes.grid(axis="x", alpha=0.2)


def main(flags: Table) -> int:
    """Train what is missing, and write the tables. Return the exit code: 1 if a run failed."""
    results, failed = results_of(flags)
    groups = group(results)
    text = tables(groups)
    if flags.out is None:
        print(text)
    else:
        flags.out.write_text(f"{text}\n")
    if flags.figure is not None and groups:
        draw(groups, flags.figure)
    if failed:
        lines = "\n".join(failed)
        print(f"{len(failed)} of {len(results) + len(failed)} failed:\n{lines}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(tyro.cli(Table)))
