"""Figures of results: accuracy matrices, accuracy over tasks, and which prompts were given."""

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from promptax.core.text import printable
from promptax.runs.looks import PAGES as PAGES
from promptax.runs.looks import Theme as Theme
from promptax.runs.looks import look_of
from promptax.runs.looks import style as style
from promptax.runs.report import Group
from promptax.runs.results import Result

_MOST_NUMBERS = 20
"""Rows or columns of a matrix up to which its cells have numbers, in a figure of its own."""
_MOST_NUMBERS_SMALL = 10
"""The same for one of several matrices in a figure, and the number of ticks of an axis."""
_DOTS_PER_INCH = 150
_DARK_CELL = 0.55
"""Share of the range of colours up to which a cell needs white text."""
_MOST_COLUMNS = 5
"""Panels beside each other."""
# Sizes in inches.
_PANEL = 2.4
_LEAST_WIDTH = 6.0
_COURSE_HEIGHT = 3.6
_LABEL_HEIGHT = 0.14
_BAR_WIDTH = 0.6
_TITLE_LINE = 0.14
_TITLE_WIDTH = 34
"""Characters of a line above a panel."""
_TITLE_SIZE = 8
"""Font size of a title above a panel, in points."""
_TICK_STEPS = (1, 5, 10, 20, 50, 100, 200, 500)
"""Steps between the numbers of tasks at an axis."""
_LABEL_WIDTH = 64
"""Characters of a name beside the axes."""
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_LINE_STYLES = ("-", "--", ":", "-.")
_FILLINGS = ("full", "none", "left", "right")
"""Of lines and their markers: they tell different settings of one method apart."""


def save_run_plots(result: Result, folder: Path) -> None:
    """Draw one run: `accuracy_matrix.png` and `accuracy.png` in its folder."""
    runs = Group((result,))
    title = f"{plain(runs.method)} on {plain(runs.stream)}, seed {result['config'].get('seed')}"
    with style("light"):
        rows, columns = np.minimum(_mean_matrix(runs).shape, _MOST_NUMBERS)
        # Inches: the margins, and room for a number in each cell.
        figure = Figure(figsize=(2.6 + 0.5 * columns, 1.6 + 0.45 * rows), layout="constrained")
        axes = figure.subplots()
        image = _draw_matrix(axes, runs, _MOST_NUMBERS, _least(runs))
        _add_bar(figure, image, [axes], "accuracy (%)")
        axes.set_title(f"{title}\naverage accuracy {_average(runs)}", fontsize=9)
        save(figure, folder / "accuracy_matrix.png", bbox_inches="tight")
        figure = Figure(figsize=(6, 4), layout="constrained")
        _draw_course(figure.subplots(), [runs], height=4.0)
        figure.suptitle(title, fontsize=9)
        save(figure, folder / "accuracy.png", bbox_inches="tight")


def save_comparison(groups: Sequence[Group], path: Path, theme: Theme = "light") -> None:
    """Draw several methods on one stream in one figure.

    It shows the average accuracy over tasks with a band of one standard deviation over seeds, the
    accuracy matrix of each method, and how often each prompt was given to each task. The ending of
    the file's name chooses the format, such as .png, .svg or .pdf.
    """
    groups = in_order(groups)
    variants = _variants(groups)
    prompted = [
        (member, variant)
        for member, variant in zip(groups, variants, strict=True)
        if member.results[0].get("prompt_usage")
    ]
    columns = min(len(groups), _MOST_COLUMNS)
    matrix_rows = math.ceil(len(groups) / columns)
    usage_rows = math.ceil(len(prompted) / columns)
    course = max(_COURSE_HEIGHT, 1.2 + _LABEL_HEIGHT * len(groups))
    row = _PANEL * 1.1 + _TITLE_LINE * (max(len(_title_lines(member, "")) for member in groups) - 1)
    heights = [course, row * matrix_rows, row * usage_rows]
    heights = [height for height in heights if height]
    with style(theme):
        size = (max(_PANEL * columns, _LEAST_WIDTH) + _BAR_WIDTH, sum(heights) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        _draw_course(parts[0, 0].subplots(), groups, height=course)
        axes = grid(parts[1, 0], len(groups), columns)
        least = min(_least(member) for member in groups)
        images = []
        for panel, member, variant in zip(axes, groups, variants, strict=True):
            images.append(_draw_matrix(panel, member, _MOST_NUMBERS_SMALL, least))
            _title(panel, member, variant, _average(member))
        _add_bar(parts[1, 0], images[-1], axes, "accuracy (%)", 1 / matrix_rows)
        if prompted:
            _draw_usages(parts[2, 0], prompted, columns)
        figure.suptitle(f"{plain(groups[0].stream)}: accuracy on test images, {_seeds(groups)}")
        save(figure, path)


def in_order(groups: Sequence[Group]) -> list[Group]:
    """Groups with those of one method beside each other, in the order of their settings.

    How settings of a method are told apart then does not depend on which were given first.
    """
    methods = [member.method for member in groups]
    natural = lambda text: [
        (0, float(part), "") if re.fullmatch(_NUMBER, part) else (1, 0.0, part)
        for part in re.split(rf"({_NUMBER})", text)
    ]
    return sorted(
        groups, key=lambda member: (methods.index(member.method), natural(member.differs))
    )


def _variants(groups: Sequence[Group]) -> list[int]:
    """For each group, how many before it look as it does: a method may have several settings."""
    looks = [look_of(member.method) for member in groups]
    return [looks[:number].count(look) for number, look in enumerate(looks)]


def _seeds(groups: Sequence[Group]) -> str:
    """Over how many seeds the numbers of a figure are means."""
    counts = sorted({len(member.results) for member in groups})
    if counts == [1]:
        return "one seed"
    return f"mean over {' to '.join(str(n) for n in sorted({counts[0], counts[-1]}))} seeds"


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


def grid(figure: Any, count: int, columns: int) -> list[Axes]:
    """Panels in rows of so many; the places that are left in the last row stay empty."""
    rows = math.ceil(count / columns)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return list(axes[:count])


def colours_of(groups: Sequence[Group]) -> list[str]:
    """The colour of the method of each group, which is the same in every figure."""
    return [look_of(runs.method).colour for runs in groups]


def _mean_matrix(runs: Group) -> np.ndarray:
    """The mean over seeds of the accuracy on each task after each task, and before it is learned
    where that was measured: just above the diagonal."""
    return np.mean([_matrix(result) for result in runs.results], axis=0)


def _matrix(result: Result) -> np.ndarray:
    matrix = np.asarray(result["accuracy_matrix"], float)
    before = result.get("accuracy_before") or []
    for test_set, accuracy in enumerate(before):
        if accuracy is not None:
            matrix[test_set - 1, test_set] = accuracy
    return matrix


def _least(runs: Group) -> float:
    """The lower end of the colours of a matrix, in percent: the lowest accuracy, rounded down."""
    return 10.0 * math.floor(10 * float(np.nanmin(_mean_matrix(runs))))


def _average(runs: Group) -> str:
    mean = runs.mean_and_deviation("average_accuracy")
    assert mean is not None, "every run has an average accuracy"
    return f"{100 * mean[0]:.1f} %"


def _title_lines(runs: Group, figure: str) -> list[str]:
    """The lines above a panel: the method with its figure, and each setting that differs."""
    lines = [f"{runs.method}: {figure}", *re.split(r", (?=[a-z_]+ |[.])", runs.differs)]
    return [_shortened(line, _TITLE_WIDTH) for line in lines if line]


def _shortened(text: str, width: int) -> str:
    """A line of at most so many characters."""
    return plain(textwrap.shorten(text, width, placeholder=" ..."))


def _title(axes: Axes, runs: Group, variant: int, figure: str) -> None:
    """A title above a panel, with the marker of the method in front of it."""
    lines = _title_lines(runs, figure)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    form = {"va": "bottom", "fontsize": _TITLE_SIZE}
    axes.annotate("\n".join(lines), (0, 1), (12, 4), **place, **form)
    # At the height of the first line, which is the uppermost.
    up = 4 + _TITLE_SIZE * (0.5 + 1.2 * (len(lines) - 1))
    beside = offset_copy(axes.transAxes, axes.figure.get_figure(root=True), 4, up, units="points")
    axes.plot([0], [1], transform=beside, clip_on=False, ls="", ms=6, **_marker(runs, variant))


def _marker(runs: Group, variant: int) -> dict[str, Any]:
    """The marker of a group, as matplotlib takes it."""
    look = look_of(runs.method)
    # Shifted by one when the line styles begin again, so that there are 16 different pairs.
    filling = _FILLINGS[(variant + variant // len(_LINE_STYLES)) % len(_FILLINGS)]
    return {
        "marker": look.marker,
        "color": look.colour,
        "fillstyle": filling,
        "markerfacecoloralt": "none",
    }


def _ticks(count: int) -> list[int]:
    """The numbers of tasks to write at an axis, from 1: the first one, and round ones."""
    step = next(step for step in _TICK_STEPS if count <= step * _MOST_NUMBERS_SMALL)
    return sorted({1, *range(step, count + 1, step)})


def _draw_matrix(axes: Axes, runs: Group, most_numbers: int, least: float) -> AxesImage:
    """Draw the accuracies in colours from `least` to 100 %, with numbers if there is room."""
    matrix = 100 * _mean_matrix(runs)
    least = min(least, 90.0)
    image = axes.imshow(matrix, cmap="cividis", vmin=least, vmax=100, aspect="auto")
    tasks, test_sets = matrix.shape
    # Joint training measures all test sets after its only task, so it has no diagonal.
    is_before = np.triu(np.isfinite(matrix), k=1) & (tasks == test_sets)
    if max(tasks, test_sets) <= most_numbers:
        for (task, test_set), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                is_dark = (value - least) / (100 - least) <= _DARK_CELL
                ink = "white" if is_dark else "black"
                form = {"ha": "center", "va": "center", "color": ink, "fontsize": 6.5}
                form["style"] = "italic" if is_before[task, test_set] else "normal"
                # Half up, as one reads 96.50; a format would take the even neighbour, 96.
                axes.text(test_set, task, f"{math.floor(value + 0.5)}", **form)
    for axis, count in ((axes.xaxis, test_sets), (axes.yaxis, tasks)):
        numbers = _ticks(count)
        axis.set_ticks([number - 1 for number in numbers], [str(number) for number in numbers])
    below = "\n(above the diagonal: before)" if is_before.any() else ""
    axes.set(xlabel=f"accuracy on task{below}", ylabel="after task")
    if tasks == 1 < test_sets:
        axes.yaxis.set_ticks([0], ["all"])  # joint training learns all tasks at once
    axes.tick_params(labelsize=7, length=2)
    axes.spines[:].set_visible(False)
    return image


def _add_bar(
    figure: Any, image: AxesImage, axes: Sequence[Axes], label: str, shrink: float = 1.0
) -> None:
    place = {"ax": list(axes), "fraction": 0.05, "pad": 0.02, "aspect": 20, "shrink": shrink}
    bar = figure.colorbar(image, **place)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _draw_course(axes: Axes, groups: Sequence[Group], *, height: float) -> None:
    """The average accuracy over tasks, with the name of each method at the end of its line."""
    tasks = max(len(runs.results[0]["accuracy_matrix"][0]) for runs in groups)
    ends = []
    for runs, variant in zip(groups, _variants(groups), strict=True):
        look = look_of(runs.method)
        marker = _marker(runs, variant)
        at, mean, band = _course(runs)
        if len(runs.results[0]["accuracy_matrix"]) == 1 < tasks:
            # Joint training is measured once, at the end.
            axes.axhline(mean[-1], color=look.colour, ls=":", lw=1)
        else:
            axes.plot(
                at,
                mean,
                ls=_LINE_STYLES[variant % len(_LINE_STYLES)],
                ms=4,
                lw=1.3,
                markevery=max(1, len(at) // 10),
                **marker,
            )
            if band is not None:
                shade = to_rgba(look.colour, 0.18)
                axes.fill_between(at, mean - band, mean + band, color=shade, lw=0)
        ends.append((float(at[-1]), float(mean[-1]), _shortened(runs.name, _LABEL_WIDTH), marker))
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)")
    _show_differences(axes)
    axes.set_xticks(_ticks(tasks))
    axes.grid(alpha=0.2)
    _label_ends(axes, ends, height)


def _course(runs: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Numbers of tasks, mean accuracy after each in percent, and its deviation over seeds."""
    courses = 100 * np.asarray(
        [[after["average_accuracy"] for after in r["after_each_task"]] for r in runs.results],
        float,
    )
    measured = np.flatnonzero(np.isfinite(courses).all(0))
    courses = courses[:, measured]
    band = courses.std(0, ddof=1) if len(courses) > 1 else None
    return measured + 1, courses.mean(0), band


def _show_differences(axes: Axes) -> None:
    """Let the axis cover what was measured, within 0 to 100, rather than all of it."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(100.0, max(high, low + 5)))


def _label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, dict[str, Any]]], height: float
) -> None:
    """Write names to the right of the axes, each as near to the end of its line as there is room.

    Args:
        axes: The axes.
        ends: The last point of each line, its name and its marker.
        height: Of the figure, in inches.
    """
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right)  # what is drawn beside the axes leaves them as they are
    gap = (high - low) * _LABEL_HEIGHT / (height - 0.9)
    order = sorted(ends, key=lambda end: end[1])
    heights = [value for _, value, _, _ in order]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + gap)
    # What has been pushed beyond the top comes down again, and pushes those below it.
    for number in reversed(range(len(heights))):
        above = heights[number + 1] - gap if number + 1 < len(heights) else high
        heights[number] = min(heights[number], above)
    for at, (last, value, name, marker) in zip(heights, order, strict=True):
        share = (at - low) / (high - low)
        form = {"clip_on": False, "transform": axes.transAxes}
        end = ((last - left) / (right - left), (value - low) / (high - low))
        # Dotted and apart from the marker, so that neither is taken for more of the line.
        axes.plot([end[0], 1.02], [end[1], share], lw=0.7, ls=":", color=marker["color"], **form)
        axes.plot([1.035], [share], ms=4, ls="", **marker, **form)
        axes.text(
            1.05, share, f"{name}  {value:.1f}", transform=axes.transAxes, va="center", fontsize=7.5
        )


def _draw_usages(figure: Any, prompted: Sequence[tuple[Group, int]], columns: int) -> None:
    """For each method with a pool of prompts, which of them the test images of a task are given."""
    usages = [_usage(runs) for runs, _ in prompted]
    most = max(float(usage.max()) for usage in usages)
    axes = grid(figure, len(prompted), columns)
    images = []
    for panel, (runs, variant), usage in zip(axes, prompted, usages, strict=True):
        colours = {"cmap": "cividis", "vmin": 0, "vmax": 100 * most}
        images.append(panel.imshow(100 * usage, aspect="auto", **colours))
        panel.set(xlabel="prompt", ylabel="test images of task")
        panel.xaxis.set_major_locator(MaxNLocator(_MOST_NUMBERS_SMALL, integer=True))
        numbers = _ticks(len(usage))
        panel.yaxis.set_ticks([number - 1 for number in numbers], list(map(str, numbers)))
        panel.tick_params(labelsize=7, length=2)
        panel.spines[:].set_visible(False)
        _title(panel, runs, variant, "prompts given")
    rows = math.ceil(len(prompted) / columns)
    _add_bar(figure, images[-1], axes, "share of a task's choices (%)", 1 / rows)


def _usage(runs: Group) -> np.ndarray:
    """The mean share of each prompt in what the images of each task are given."""
    shares = [_shares(result["prompt_usage"]) for result in runs.results]
    # Each result counts up to the last prompt that was given, which differs between seeds.
    prompts = max(share.shape[1] for share in shares)
    return np.mean([np.pad(s, ((0, 0), (0, prompts - s.shape[1]))) for s in shares], axis=0)


def _shares(usage: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.asarray(usage, float)
    return counts / counts.sum(1, keepdims=True)
