"""Warnings about tables whose rows are hard to compare."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from promptax.runs.provenance import describe_source
from promptax.runs.report import Group, by_stream, group, titles
from promptax.runs.results import Result

NOT_RECORDED = "not recorded"


def caveats(results: Iterable[Result]) -> list[str]:
    """Find what the runs in one table should share but do not, and return a warning for each.

    The protocol, the weights, the split of each seed, and the versions of the package and its
    libraries are compared. Raises `UserError` as `group` does.
    """
    streams = by_stream(group(results))
    tables = [[run for member in members for run in member.results] for members in streams.values()]
    return [*_same_name(streams), *(line for table in tables for line in _within(table))]


def _same_name(streams: Mapping[str, Sequence[Group]]) -> Iterator[str]:
    """Warn of several tables for one stream, since their figures are not comparable."""
    tables: dict[str, list[str]] = defaultdict(list)
    for key, title in titles(streams).items():
        tables[streams[key][0].stream].append(title)
    for name, found in tables.items():
        if len(found) > 1:
            yield f"{name}: {len(found)} tables, since runs differ in split: {', '.join(found)}"


def _within(table: Sequence[Result]) -> Iterator[str]:
    name = table[0]["stream"]["name"]
    for aspect, read in _ASPECTS.items():
        if difference := _difference(table, read):
            yield f"{name}: runs differ in {aspect}: {difference}"
    seeds: dict[int, list[Result]] = defaultdict(list)
    for run in table:
        seeds[run["config"]["seed"]].append(run)
    # Where the order of classes is drawn, seeds differ in their split by design.
    for seed, runs in seeds.items():
        if difference := _difference(runs, _split):
            yield f"{name}: runs of seed {seed} differ in split or images: {difference}"


def _difference(table: Iterable[Result], read: Callable[[Result], Hashable]) -> str | None:
    """The different values with the methods that have each; None if all runs have the same."""
    methods: dict[Hashable, list[str]] = defaultdict(list)
    for run in table:
        methods[read(run)].append(run["method"])
    if len(methods) == 1:
        return None
    return ", ".join(f"{value} ({_counted(names)})" for value, names in methods.items())


def _counted(methods: Sequence[str]) -> str:
    """The methods of some runs and how many of each, such as `2 l2p, 3 linear`."""
    return ", ".join(f"{methods.count(name)} {name}" for name in dict.fromkeys(methods))


def _protocol(run: Result) -> str:
    """The part of a protocol that changes the headline accuracy: the batch size does not."""
    protocol = run.get("evaluation", {})
    if not protocol:
        return NOT_RECORDED
    return f"{protocol.get('classes')} classes compete, measured every {protocol.get('every')}"


def _weights(run: Result) -> str:
    return f"{run['weights'].get('name')} {_short(run['weights']['sha256'])}"


def _split(run: Result) -> str:
    return f"{_short(run['stream']['sha256'])} {_short(run['stream'].get('images_sha256'))}"


def _version(run: Result) -> str:
    return describe_source(run["source"]) if "source" in run else NOT_RECORDED


def _library(name: str) -> Callable[[Result], str]:
    return lambda run: run.get("versions", {}).get(name, NOT_RECORDED)


def _short(sha256: str | None) -> str:
    return str(sha256)[:8]


_ASPECTS: Mapping[str, Callable[[Result], Hashable]] = {
    "protocol": _protocol,
    "weights": _weights,
    "version of promptax": _version,
    **{f"version of {name}": _library(name) for name in ("jax", "jaxlib", "equinox", "optax")},
}
