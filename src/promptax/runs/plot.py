"""Figures of results. Colours can be told apart by everybody, on a light page and on a dark one."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from promptax.runs.report import Group, Result

Theme = Literal["light", "dark"]

# Okabe & Ito (2008); each method keeps its colour in every figure.
_COLOURS: Mapping[str, str] = {
    "finetune": "#D55E00",
    "linear": "#E69F00",
    "l2p": "#56B4E9",
    "dualprompt": "#009E73",
    "joint": "#CC79A7",
}
_OTHERS = ("#0072B2", "#999999", "#9467BD")
# More rows, columns or ticks than these are drawn without figures.
_MOST_FIGURES = 20
_PAGES: Mapping[Theme, tuple[str, str]] = {
    "light": ("#ffffff", "#1f2328"),
    "dark": ("#0d1117", "#e6edf3"),
}


def save_run_plots(result: Result, folder: Path) -> None:
    """Write `accuracy_matrix.png` and `accuracy.png` of one run into its folder."""
    runs = Group((result,))
    with _style("light"):
        stages, tasks = np.minimum(_mean_matrix(runs).shape, _MOST_FIGURES)
        figure = Figure(figsize=(1.6 + 0.55 * tasks, 1.4 + 0.5 * stages))
        _draw_matrix(figure.subplots(), runs, *_colours([runs]))
        figure.savefig(folder / "accuracy_matrix.png", dpi=150, bbox_inches="tight")
        figure = Figure(figsize=(6, 4))
        _draw_course(figure.subplots(), [runs])
        figure.savefig(folder / "accuracy.png", dpi=150, bbox_inches="tight")


def save_comparison(groups: Sequence[Group], path: Path, theme: Theme = "light") -> None:
    """Write one figure of several methods on one stream: the accuracy matrix of each, average
    accuracy over tasks with a band of one standard deviation over seeds, and prompt usage."""
    prompted = [member for member in groups if member.results[0]["prompt_usage"]]
    with _style(theme):
        figure = Figure(figsize=(3.1 * max(len(groups), 3), 6.6), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.1))
        colours = _colours(groups)
        for axes, member, colour in zip(_row(halves[0], len(groups)), groups, colours, strict=True):
            _draw_matrix(axes, member, colour)
        course, *usage = _row(halves[1], 1 + len(prompted), [1.5] + [1.0] * len(prompted))
        _draw_course(course, groups)
        for axes, member in zip(usage, prompted, strict=True):
            _draw_usage(axes, member, colours[groups.index(member)])
        figure.suptitle(groups[0].stream)
        figure.savefig(path, dpi=150)


def save_standings(groups: Sequence[Group], path: Path, theme: Theme = "light") -> None:
    """Write the average accuracy of methods, best first, with a bar of one standard deviation over
    seeds; a panel for each stream."""
    streams = list(dict.fromkeys(runs.stream for runs in groups))
    rows = max(sum(runs.stream == stream for runs in groups) for stream in streams)
    with _style(theme):
        size = (0.6 + 3.4 * len(streams), 1.2 + 0.24 * rows)
        figure = Figure(figsize=size, layout="constrained")
        for axes, stream in zip(_row(figure, len(streams)), streams, strict=True):
            _draw_standings(axes, [runs for runs in groups if runs.stream == stream])
            axes.set_title(stream)
        figure.savefig(path, dpi=150)


def _draw_standings(axes: Axes, groups: Sequence[Group]) -> None:
    scores = [100 * np.array([r["average_accuracy"] for r in runs.results]) for runs in groups]
    order = sorted(range(len(groups)), key=lambda n: scores[n].mean())
    colours = _colours(groups)
    for place, n in enumerate(order):
        mean, bar = scores[n].mean(), scores[n].std(ddof=1) if len(scores[n]) > 1 else 0.0
        axes.errorbar(mean, place, xerr=bar, fmt="o", ms=4, capsize=2, color=colours[n])
    axes.set_yticks(range(len(order)), [groups[n].name for n in order])
    axes.set(xlabel="average accuracy (%)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.2)


def _row(figure: Any, count: int, widths: Sequence[float] | None = None) -> list[Axes]:
    axes = figure.subplots(1, count, squeeze=False, gridspec_kw={"width_ratios": widths})
    return list(axes[0])


def _style(theme: Theme):
    page, ink = _PAGES[theme]
    ink_keys = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    return rc_context(
        {
            **dict.fromkeys(ink_keys, ink),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.size": 9,
        }
    )


def _mean_matrix(runs: Group) -> np.ndarray:
    return np.mean([np.asarray(r["accuracy_matrix"], float) for r in runs.results], axis=0)


def _draw_matrix(axes: Axes, runs: Group, colour: str) -> None:
    matrix = _mean_matrix(runs)
    axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    stages, tasks = matrix.shape
    for (stage, task), value in np.ndenumerate(matrix):
        if np.isfinite(value) and stages <= _MOST_FIGURES:
            ink = "black" if value > 0.55 else "white"
            text = f"{100 * value:.0f}"
            axes.text(task, stage, text, ha="center", va="center", color=ink, fontsize=7)
    for axis, count in ((axes.xaxis, tasks), (axes.yaxis, stages)):
        # About as many ticks as there is room for figures, the first at task 1.
        ticks = range(0, count, -(-count // _MOST_FIGURES))
        axis.set_ticks(ticks, [str(i + 1) for i in ticks])
    mean = runs.mean_and_deviation("average_accuracy")
    assert mean is not None, "every run has an average accuracy"
    axes.set(xlabel="accuracy on task (%)", ylabel="after task")
    if stages == 1 < tasks:
        axes.yaxis.set_ticks([0], ["all"])
    settings = f"\n{runs.differs}" if runs.differs else ""
    axes.set_title(f"{runs.method}: {100 * mean[0]:.1f} %{settings}", color=colour, fontsize=9)
    axes.spines[:].set_visible(False)


def _draw_course(axes: Axes, groups: Sequence[Group]) -> None:
    tasks = max(len(runs.results[0]["accuracy_matrix"][0]) for runs in groups)
    for runs, colour in zip(groups, _colours(groups), strict=True):
        courses = 100 * np.asarray(
            [[after["average_accuracy"] for after in r["after_each_task"]] for r in runs.results],
            float,
        )
        measured = np.flatnonzero(np.isfinite(courses).all(0))
        courses = courses[:, measured]
        mean = courses.mean(0)
        if (
            len(runs.results[0]["accuracy_matrix"]) == 1 < tasks
        ):  # joint training: one figure, at the end
            axes.axhline(mean[0], color=colour, ls="--", label=runs.name)
            continue
        at = measured + 1
        axes.plot(at, mean, "o-", ms=3, color=colour, label=runs.name)
        if len(courses) > 1:
            band = courses.std(0, ddof=1)
            axes.fill_between(at, mean - band, mean + band, color=to_rgba(colour, 0.25), lw=0)
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(_MOST_FIGURES, integer=True))
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)


def _draw_usage(axes: Axes, runs: Group, colour: str) -> None:
    shares = [_shares(result["prompt_usage"]) for result in runs.results]
    # A result counts up to the last prompt that it gave, which differs between seeds.
    prompts = max(share.shape[1] for share in shares)
    usage = np.mean([np.pad(s, ((0, 0), (0, prompts - s.shape[1]))) for s in shares], axis=0)
    axes.imshow(usage, cmap="cividis", vmin=0, aspect="auto")
    axes.set(xlabel="prompt", ylabel="test images of task")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_ticks(range(len(usage)), [str(i + 1) for i in range(len(usage))])
    axes.set_title(f"{runs.name}: prompts given", color=colour)
    axes.spines[:].set_visible(False)


def _shares(usage: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.asarray(usage, float)
    return counts / counts.sum(1, keepdims=True)


def _colours(groups: Sequence[Group]) -> list[str]:
    """Each method's own; the others in turn for those without, and for other settings of one."""
    own, others = dict(_COLOURS), itertools.cycle(_OTHERS)
    return [own.pop(runs.method, None) or next(others) for runs in groups]
