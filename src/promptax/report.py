"""Tables and plots of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The colours of Okabe & Ito (2008) can be told apart by everybody.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

Result = Mapping[str, Any]


def table(results: Sequence[Result]) -> str:
    """A Markdown table of runs: average accuracy, forgetting and what it took."""
    head = (
        "| method | stream | seed | average accuracy | forgetting | learning accuracy | trained |"
    )
    rows = [head, "|---|---|---|---|---|---|---|"]
    for result in results:
        cells = [
            result["method"],
            result["stream"]["name"],
            str(result["config"]["seed"]),
            *(
                _percent(result[name])
                for name in ("average_accuracy", "forgetting", "learning_accuracy")
            ),
            f"{result['parameters']['trainable']:,}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def save_plots(result: Result, folder: Path) -> None:
    """Write `accuracy_matrix.png` and `accuracy.png` of a run into its folder."""
    from matplotlib.figure import Figure  # it takes longer to import than JAX

    matrix = np.asarray(result["accuracy_matrix"], float)
    figure = Figure(figsize=(1.2 + 0.7 * matrix.shape[1], 1.2 + 0.6 * matrix.shape[0]))
    _draw_matrix(figure.subplots(), matrix)
    figure.savefig(folder / "accuracy_matrix.png", dpi=150, bbox_inches="tight")
    figure = Figure(figsize=(6, 4))
    _draw_course(figure.subplots(), result)
    figure.savefig(folder / "accuracy.png", dpi=150, bbox_inches="tight")


def _draw_matrix(axes: Any, matrix: np.ndarray) -> None:
    axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (stage, task), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(task, stage, f"{100 * value:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(matrix.shape[1]), [str(i + 1) for i in range(matrix.shape[1])])
    axes.set_yticks(range(matrix.shape[0]), [str(i + 1) for i in range(matrix.shape[0])])
    axes.set(xlabel="accuracy on task (%)", ylabel="after task")
    axes.spines[:].set_visible(False)


def _draw_course(axes: Any, result: Result) -> None:
    course = [100 * after["average_accuracy"] for after in result["after_each_task"]]
    axes.plot(range(1, len(course) + 1), course, "o-", color=COLOURS[0])
    axes.set(xlabel="tasks learned", ylabel="average accuracy (%)", ylim=(0, 100))
    axes.set_title(f"{result['method']} on {result['stream']['name']}")
    axes.set_xticks(range(1, len(course) + 1))
    axes.grid(alpha=0.3)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
