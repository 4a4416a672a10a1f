"""Figures of results for light and dark pages, in a palette that is safe for the colour-blind."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from promptax.core.text import printable
from promptax.runs.report import Group, Result

Theme = Literal["light", "dark"]

# The palette of Okabe & Ito (2008); each of these methods has the same colour in every figure.
_COLOURS: Mapping[str, str] = {
    "finetune": "#D55E00",
    "linear": "#E69F00",
    "l2p": "#56B4E9",
    "dualprompt": "#009E73",
    "linear-joint": "#CC79A7",
}
_OTHERS = ("#0072B2", "#999999", "#9467BD")
_MOST_NUMBERS = 20  # rows, columns or ticks; where there are more, numbers would overlap
_DOTS_PER_INCH = 150
_DARK_CELL = 0.55  # accuracy up to which a cell of the matrix needs white text
_WIDE_PANEL = 1.5  # of the accuracy over tasks, relative to those of prompt usage
_PAGES: Mapping[Theme, tuple[str, str]] = {
    "light": ("#ffffff", "#1f2328"),
    "dark": ("#0d1117", "#e6edf3"),
}


def save_run_plots(result: Result, folder: Path) -> None:
    """Draw one run: `accuracy_matrix.png` and `accuracy.png` in its folder."""
    runs = Group((result,))
    with style("light"):
        rows, columns = np.minimum(_mean_matrix(runs).shape, _MOST_NUMBERS)
        # Inches: the margins, and room for a number in each cell.
        figure = Figure(figsize=(1.6 + 0.55 * columns, 1.4 + 0.5 * rows))
        colour = colours_of([runs])[0]
        _draw_matrix(figure.subplots(), runs, colour)
        save(figure, folder / "accuracy_matrix.png", bbox_inches="tight")
        figure = Figure(figsize=(6, 4))
        _draw_course(figure.subplots(), [runs])
        save(figure, folder / "accuracy.png", bbox_inches="tight")


def save_comparison(groups: Sequence[Group], path: Path, theme: Theme = "light") -> None:
    """Draw several methods on one stream in one figure.

    It shows the accuracy matrix of each method, the average accuracy over tasks with a band of one
    standard deviation over seeds, and how often each prompt was given to each task.
    """
    prompted = [member for member in groups if member.results[0]["prompt_usage"]]
    with style(theme):
        figure = Figure(figsize=(3.1 * max(len(groups), 3), 6.6), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.1))
        colours = colours_of(groups)
        for axes, member, colour in zip(
            panels(halves[0], len(groups)), groups, colours, strict=True
        ):
            _draw_matrix(axes, member, colour)
        widths = [_WIDE_PANEL] + [1.0] * len(prompted)
        course, *usage = panels(halves[1], len(widths), widths)
        _draw_course(course, groups)
        for axes, member in zip(usage, prompted, strict=True):
            _draw_usage(axes, member, colours[groups.index(member)])
        figure.suptitle(plain(groups[0].stream))
        save(figure, path)


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure to a file, in the resolution of all figures."""
    figure.savefig(path, dpi=_DOTS_PER_INCH, **options)


def plain(text: str) -> str:
    """A text from a file, without the `$` by which matplotlib would take it for a formula."""
    return printable(text).replace("$", r"\$")


def panels(figure: Any, count: int, widths: Sequence[float] | None = None) -> list[Axes]:
    """Panels beside each other, with their relative widths if these differ."""
    axes = figure.subplots(1, count, squeeze=False, gridspec_kw={"width_ratios": widths})
    return list(axes[0])


def style(theme: Theme):
    """The settings of matplotlib for a light or a dark page, as a context manager."""
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
    matrices = [np.asarray(result["accuracy_matrix"], float) for result in runs.results]
    return np.mean(matrices, axis=0)


def _draw_matrix(axes: Axes, runs: Group, colour: str) -> None:
    matrix = _mean_matrix(runs)
    axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    tasks, test_sets = matrix.shape
    for (task, test_set), value in np.ndenumerate(matrix):
        if np.isfinite(value) and tasks <= _MOST_NUMBERS:
            ink = "black" if value > _DARK_CELL else "white"
            text = f"{100 * value:.0f}"
            axes.text(test_set, task, text, ha="center", va="center", color=ink, fontsize=7)
    for axis, count in ((axes.xaxis, test_sets), (axes.yaxis, tasks)):
        # At most as many ticks as there is room for numbers, the first one at task 1.
        ticks = range(0, count, math.ceil(count / _MOST_NUMBERS))
        axis.set_ticks(ticks, [str(i + 1) for i in ticks])
    mean = runs.mean_and_deviation("average_accuracy")
    assert mean is not None, "every run has an average accuracy"
    axes.set(xlabel="accuracy on task (%)", ylabel="after task")
    if tasks == 1 < test_sets:
        axes.yaxis.set_ticks([0], ["all"])  # joint training learns all tasks at once
    settings = f"\n{plain(runs.differs)}" if runs.differs else ""
    axes.set_title(
        f"{plain(runs.method)}: {100 * mean[0]:.1f} %{settings}", color=colour, fontsize=9
    )
    axes.spines[:].set_visible(False)


def _draw_course(axes: Axes, groups: Sequence[Group]) -> None:
    tasks = max(len(runs.results[0]["accuracy_matrix"][0]) for runs in groups)
    for runs, colour in zip(groups, colours_of(groups), strict=True):
        courses = 100 * np.asarray(
            [[after["average_accuracy"] for after in r["after_each_task"]] for r in runs.results],
            float,
        )
        measured = np.flatnonzero(np.isfinite(courses).all(0))
        courses = courses[:, measured]
        mean = courses.mean(0)
        if len(runs.results[0]["accuracy_matrix"]) == 1 < tasks:
            # Joint training is measured once, at the end.
            axes.axhline(mean[0], color=colour, ls="--", label=plain(runs.name))
            continue
        at = measured + 1
        axes.plot(at, mean, "o-", ms=3, color=colour, label=plain(runs.name))
        if len(courses) > 1:
            band = courses.std(0, ddof=1)
            axes.fill_between(at, mean - band, mean + band, color=to_rgba(colour, 0.25), lw=0)
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(_MOST_NUMBERS, integer=True))
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)


def _draw_usage(axes: Axes, runs: Group, colour: str) -> None:
    shares = [_shares(result["prompt_usage"]) for result in runs.results]
    # Each result counts up to the last prompt that was given, which differs between seeds.
    prompts = max(share.shape[1] for share in shares)
    usage = np.mean([np.pad(s, ((0, 0), (0, prompts - s.shape[1]))) for s in shares], axis=0)
    axes.imshow(usage, cmap="cividis", vmin=0, aspect="auto")
    axes.set(xlabel="prompt", ylabel="test images of task")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_ticks(range(len(usage)), [str(i + 1) for i in range(len(usage))])
    axes.set_title(f"{plain(runs.name)}: prompts given", color=colour)
    axes.spines[:].set_visible(False)


def _shares(usage: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.asarray(usage, float)
    return counts / counts.sum(1, keepdims=True)


def colours_of(groups: Sequence[Group]) -> list[str]:
    """The colour of each method; other colours in turn for methods that have none of their own, and
    for further settings of a method."""
    own = dict(_COLOURS)
    others = itertools.cycle(_OTHERS)
    return [own.pop(runs.method, None) or next(others) for runs in groups]
