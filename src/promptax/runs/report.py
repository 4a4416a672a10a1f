"""Tables of results: seeds of the same settings together, streams apart."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.errors import UserError

Result = Mapping[str, Any]
"""The content of a `result.json`."""
Format = Literal["markdown", "csv", "latex"]

_COLUMNS = (
    "method",
    "average accuracy",
    "forgetting",
    "learning accuracy",
    "seeds",
    "trained parameters",
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    results: tuple[Result, ...]
    differs: str = ""
    """The settings in which it differs from other runs of its method on its stream."""

    @property
    def method(self) -> str:
        """By name."""
        return self.results[0]["method"]

    @property
    def name(self) -> str:
        """Of the method, with what tells these runs from others of it."""
        return f"{self.method} ({self.differs})" if self.differs else self.method

    @property
    def stream(self) -> str:
        """Of the stream."""
        return self.results[0]["stream"]["name"]

    def mean_and_deviation(self, figure: str) -> tuple[float, float | None] | None:
        """Of a figure over the seeds; the standard deviation (n - 1) of one run is None."""
        values = [result[figure] for result in self.results]
        if None in values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return statistics.fmean(values), deviation

    def cells(self) -> tuple[str, ...]:
        """A row of the table, in percent."""
        figures = ("average_accuracy", "forgetting", "learning_accuracy")
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
        if result["stages_done"] < len(result["accuracy_matrix"]):
            done = f"{result['stages_done']} of {len(result['accuracy_matrix'])} tasks"
            raise UserError(f"a run of {result['method']} has finished {done}: --resume it first.")
        settings = {name: value for name, value in result["config"].items() if name != "seed"}
        settings["weights"] = result["weights"]["sha256"]
        members = groups.setdefault(json.dumps(settings, sort_keys=True), [])
        if any(other["config"]["seed"] == result["config"]["seed"] for other in members):
            raise UserError(
                f"two runs of {result['method']} with the same settings and seed "
                f"{result['config']['seed']}: a mean over them would count one twice."
            )
        members.append(result)
    return _told_apart([Group(tuple(members)) for members in groups.values()])


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Name the settings that differ between groups of one method on one stream."""
    alike: dict[tuple[str, str], list[Group]] = {}
    for member in groups:
        alike.setdefault((_stream_key(member), member.method), []).append(member)
    return [_named(member, alike[_stream_key(member), member.method]) for member in groups]


def _named(member: Group, alike: Sequence[Group]) -> Group:
    own, *all_settings = (_settings(other.results[0]) for other in (member, *alike))
    differing = [
        key
        for key in sorted({key for settings in all_settings for key in settings})
        if len({str(settings.get(key)) for settings in all_settings}) > 1
    ]
    # Three say enough; the rest is in config.json.
    shown = [f"{key.rpartition('.')[2]} {own.get(key)}" for key in differing[:3]]
    return Group(member.results, ", ".join([*shown, "..."] if len(differing) > 3 else shown))


def _settings(result: Result) -> dict[str, Any]:
    """All but the seed, as `method.pool_size`, with the digest of the weights."""
    config = {name: value for name, value in result["config"].items() if name != "seed"}
    return dict(flat(config)) | {"weights": str(result["weights"]["sha256"])[:8]}


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by names such as `method.pool_size`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def by_stream(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Figures of different streams don't belong in one table."""
    streams: dict[str, list[Group]] = {}
    for member in groups:
        streams.setdefault(_stream_key(member), []).append(member)
    return streams


def table(results: Iterable[Result], form: Format = "markdown") -> str:
    """A table for each stream: mean and standard deviation (n - 1) over seeds, in percent."""
    write = {"markdown": _markdown, "csv": _csv, "latex": _latex}[form]
    parts = []
    for members in by_stream(group(results)).values():
        rows = [_COLUMNS, *(member.cells() for member in members)]
        parts.append(write(members[0].stream, rows))
    return "\n\n".join(parts)


def _stream_key(member: Group) -> str:
    result = member.results[0]
    # With an order drawn from the seed, every seed has a split of its own by design.
    drawn = result["config"]["data"]["shuffle_classes"]
    names = (result["stream"]["name"], len(result["stream"]["class_order"]))
    return f"{names} drawn" if drawn else f"{names} {result['stream']['sha256']}"


def _markdown(stream: str, rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{stream}** (%)", "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _csv(stream: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([",".join(["stream", *rows[0]]), *(",".join([stream, *r]) for r in rows[1:])])


def _latex(stream: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(row).replace("±", r"$\pm$") + r" \\" for row in rows]
    head = (
        rf"% {stream}" + "\n" + rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}" + "\n\\hline"
    )
    return "\n".join([head, lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"])


def percent(figure: tuple[float, float | None] | None) -> str:
    """A mean and its deviation as a cell, in percent."""
    if figure is None:
        return "-"
    mean, deviation = figure
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
