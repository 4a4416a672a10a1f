"""Tables of results: a row for the seeds of the same settings, and a table for each stream."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.runs.folder import leaves_by_name
from promptax.runs.results import Result

Format = Literal["markdown", "csv", "latex"]

_FIGURES = (
    "average_accuracy",
    "average_incremental_accuracy",
    "accuracy_by_example",
    "forgetting",
    "learning_accuracy",
)
"""The figures of every table, in the order of their columns."""
_FIGURES_OF_SOME = ("forward_transfer",)
"""Figures that many streams do not have: a table has a column for them if one of its rows does."""
_SETTINGS_NAMED = 3  # of those that tell two rows apart; the rest is in config.json
_DIGEST_SHOWN = 8  # characters


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    results: tuple[Result, ...]
    differs: str = ""
    """The settings in which it differs from other runs of its method on its stream."""

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.results[0]["method"]

    @property
    def name(self) -> str:
        """The name of the method, with the settings that tell these runs from others of it."""
        return f"{self.method} ({self.differs})" if self.differs else self.method

    @property
    def stream(self) -> str:
        """The name of the stream."""
        return self.results[0]["stream"]["name"]

    def mean_and_deviation(self, figure: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (n - 1) of a figure over the seeds.

        The deviation of one run is None; so is the whole if a run does not have the figure.
        """
        values = [result[figure] for result in self.results if result.get(figure) is not None]
        if len(values) < len(self.results):
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return statistics.fmean(values), deviation

    def cells(self, figures: Sequence[str] = _FIGURES) -> tuple[str, ...]:
        """A row of the table: these figures in percent, between name and counts."""
        return (
            self.name,
            *(percent(self.mean_and_deviation(figure)) for figure in figures),
            str(len(self.results)),
            f"{self.results[0]['parameters']['trainable']}",
        )


def group(results: Iterable[Result]) -> list[Group]:
    """Put runs of the same settings together, in the order in which they come.

    Raises `UserError` for two runs of the same settings and seed, and for an unfinished run.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result["tasks_done"] < len(result["accuracy_matrix"]):
            done = f"{result['tasks_done']} of {len(result['accuracy_matrix'])} tasks"
            raise UserError(
                f"a run of {result['method']} has finished {done}: go on with resume=True first."
            )
        members = groups.setdefault(_settings_key(result), [])
        if any(other["config"]["seed"] == result["config"]["seed"] for other in members):
            raise UserError(
                f"two runs of {result['method']} with the same settings and seed "
                f"{result['config']['seed']}: a mean over them would count one twice."
            )
        members.append(result)
    return _told_apart([Group(tuple(members)) for members in groups.values()])


def repeated(results: Iterable[Result]) -> dict[int, int]:
    """Find the results that repeat an earlier one: the same settings, weights, seed
    and, if it was given as an object, stream.

    A mean over both would count one run twice.

    Returns:
        The position of each repetition, and the position of the result that it repeats.
    """
    first: dict[tuple[str, int], int] = {}
    repetitions = {}
    for number, result in enumerate(results):
        run = (_settings_key(result), result["config"]["seed"])
        if run in first:
            repetitions[number] = first[run]
        else:
            first[run] = number
    return repetitions


def _settings_key(result: Result) -> str:
    """The key of a row: all settings but the seed, the weights, and a stream given as an object."""
    settings = {name: value for name, value in result["config"].items() if name != "seed"}
    digests = {"weights": result["weights"]["sha256"], **_digests_of_given(result)}
    return json.dumps({**settings, **digests}, sort_keys=True)


def _digests_of_given(result: Result) -> dict[str, Any]:
    """The digests of a stream that was given as a Python object; settings describe the others."""
    if "stream" not in result["config"].get("given", ()):
        return {}
    stream = result["stream"]
    return {"split": stream["sha256"], "images": stream.get("images_sha256")}


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Name the settings that differ between groups of one method on one stream."""
    alike: dict[tuple[str, str], list[Group]] = {}
    for member in groups:
        alike.setdefault((_stream_key(member), member.method), []).append(member)
    named = []
    for member in groups:
        others = alike[_stream_key(member), member.method]
        named.append(Group(member.results, _differing_settings(member, others)))
    return named


def _differing_settings(member: Group, alike: Sequence[Group]) -> str:
    """Those settings of a group that not all groups share, such as `pool_size 5, top_k 1`."""
    others = [_settings(other.results[0]) for other in alike]
    return _difference(_settings(member.results[0]), others)


def _difference(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The values of some settings that not all of the others share, with their names."""
    differing = [
        name
        for name in sorted({name for settings in others for name in settings})
        if len({str(settings.get(name)) for settings in others}) > 1
    ]
    # As few as tell all of them apart, though some more if there is room.
    values = lambda count: {tuple(str(s.get(n)) for n in differing[:count]) for s in others}
    named = min(_SETTINGS_NAMED, len(differing))
    while len(values(named)) < len(values(len(differing))):
        named += 1
    shown = [f"{name.rpartition('.')[2]} {own.get(name)}" for name in differing[:named]]
    if len(differing) > named:
        shown.append("...")
    return ", ".join(shown)


def _settings(result: Result) -> dict[str, Any]:
    """All settings but the seed, as `method.pool_size`, with the digests of weights and of a stream
    given as an object."""
    config = {name: value for name, value in result["config"].items() if name != "seed"}
    digests = {"weights": result["weights"]["sha256"], **_digests_of_given(result)}
    return dict(leaves_by_name(config)) | {
        name: str(d)[:_DIGEST_SHOWN] for name, d in digests.items()
    }


def by_stream(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Collect groups by stream, since figures of different streams don't belong in one table."""
    streams: dict[str, list[Group]] = {}
    for member in groups:
        streams.setdefault(_stream_key(member), []).append(member)
    return streams


def titles(streams: Mapping[str, Sequence[Group]]) -> dict[str, str]:
    """A title for the table of each stream: its name, and what tells it from others of that name.

    These are settings of the data, such as `split-glyphs (tasks 5)`; if no setting differs, then
    the split or the images do, and the title has the digest of the split.
    """
    alike: dict[str, list[str]] = {}
    for key, members in streams.items():
        alike.setdefault(members[0].stream, []).append(key)
    found = {}
    for name, keys in alike.items():
        settings = {key: _stream_settings(streams[key][0].results[0]) for key in keys}
        for key in keys:
            difference = _difference(settings[key], list(settings.values()))
            found[key] = f"{name} ({difference})" if difference else name
        if len({found[key] for key in keys}) < len(keys):
            for key in keys:
                digest = str(streams[key][0].results[0]["stream"]["sha256"])[:_DIGEST_SHOWN]
                found[key] = f"{name} (split {digest})"
    return found


def _stream_settings(result: Result) -> dict[str, Any]:
    """The settings that made a stream, and the number of its tasks."""
    settings = dict(leaves_by_name({"data": result["config"].get("data", {})}))
    # Joint training has the examples of the others, and how tasks were asked for does not matter.
    for name in ("data.joint", "data.dir", "data.tasks", "data.task_sizes"):
        settings.pop(name, None)
    return {**settings, "tasks": len(result["stream"]["class_order"])}


def _stream_key(member: Group) -> str:
    result = member.results[0]
    # With an order drawn from the run's seed, every seed has a split of its own by design.
    data = result["config"]["data"]
    drawn = data["shuffle_classes"] and data.get("class_seed") is None
    name_and_tasks = (result["stream"]["name"], len(result["stream"]["class_order"]))
    return f"{name_and_tasks} {'drawn' if drawn else result['stream']['sha256']}"


def table(results: Iterable[Result], form: Format = "markdown") -> str:
    """A table for each stream: mean and standard deviation (n - 1) over seeds, in percent.

    Names come from files, so they are escaped for the format: a `|` in Markdown, a `%` in LaTeX,
    and in CSV what a spreadsheet would take for a formula.

    Raises `UserError` as `group` does.
    """
    write = {"markdown": _markdown, "csv": _csv, "latex": _latex}[form]
    parts = []
    streams = by_stream(group(results))
    for key, title in titles(streams).items():
        members = streams[key]
        figures = [*_FIGURES, *(name for name in _FIGURES_OF_SOME if _has(members, name))]
        names = [figure.replace("_", " ") for figure in figures]
        head = ("method", *names, "seeds", "trained parameters")
        parts.append(write(title, [head, *(member.cells(figures) for member in members)]))
    return "\n\n".join(parts)


def _has(groups: Iterable[Group], figure: str) -> bool:
    return any(member.mean_and_deviation(figure) is not None for member in groups)


def _markdown(stream: str, rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_markdown_text, row)) + " |" for row in rows]
    title = f"**{_markdown_text(stream)}** (%)"
    rule = "|---" * len(rows[0]) + "|"
    return "\n".join([title, "", lines[0], rule, *lines[1:]])


def _markdown_text(text: str) -> str:
    html = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|"}
    return "".join(html.get(character, character) for character in printable(text))


def _csv(stream: str, rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head, *body = rows
    writer.writerow(["stream", *head])
    for name, *figures in body:
        writer.writerow([_csv_text(stream), _csv_text(name), *figures])
    return out.getvalue().rstrip("\n")


def _csv_text(text: str) -> str:
    """A text that no spreadsheet evaluates: an apostrophe before it marks it as text."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _latex(stream: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_latex_text, row)) + r" \\" for row in rows]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join(
        [
            f"% {printable(stream)}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def percent(figure: tuple[float, float | None] | None) -> str:
    """A mean and its deviation as a cell, in percent."""
    if figure is None:
        return "-"
    mean, deviation = figure
    if not math.isfinite(mean):
        raise ValueError(f"a figure is {mean}")
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
