"""`promptax data list`: the streams to train on, and the data sets that they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.cli.data.table import table
from promptax.cli.parse import parse
from promptax.core.text import format_bytes
from promptax.data.benchmark import BENCHMARKS, Benchmark
from promptax.data.bundled import BUNDLED_SETS
from promptax.data.catalog import CATALOG, Entry
from promptax.data.fetch import is_fetched
from promptax.data.location import data_dir, downloads, half_prepared, own_names, prepared

_KINDS = {
    "classes": "of new classes",
    "domains": "of new domains",
    "classes-and-domains": "of new classes in new domains",
    "sets": "data sets",
    "gaussian": "of classes that fade in and out",
}
"""A description of the tasks of each kind of stream."""


@dataclass(frozen=True)
class List:
    """List the streams to train on, and the data sets that are known, downloaded or prepared."""

    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Print a line for each stream, for each set of the catalog and for each of the user's own."""
    flags: List = parse(List, argv, prog="promptax data list")
    print("streams (promptax train METHOD --data.stream NAME):\n")
    streams = [_stream(name, benchmark, flags.data_dir) for name, benchmark in BENCHMARKS.items()]
    print(table([("name", "tasks", "data sets", "ready"), *streams]))
    rows = [_row(name, entry, flags.data_dir) for name, entry in CATALOG.items()]
    rows += [
        (name, "prepared", "", _taken(prepared(name, flags.data_dir)), "", "your own")
        for name in own_names(flags.data_dir)
    ]
    print(f"\ndata sets, in {data_dir(flags.data_dir)}:\n")
    print(table([("name", "state", "download", "prepared", "licence", "set"), *rows]))


def _stream(name: str, benchmark: Benchmark, given: Path | None) -> tuple[str, ...]:
    lacking = [
        member
        for member in benchmark.sets
        if member not in BUNDLED_SETS and not (prepared(member, given) / "meta.json").is_file()
    ]
    count = len(benchmark.sets) if benchmark.kind == "sets" else benchmark.tasks
    tasks = _KINDS[benchmark.kind] if count is None else f"{count} {_KINDS[benchmark.kind]}"
    ready = f"needs {', '.join(lacking)}" if lacking else "yes"
    return (name, tasks, ", ".join(benchmark.sets), ready)


def _row(name: str, entry: Entry, given: Path | None) -> tuple[str, ...]:
    folder = downloads(name, given)
    prepared_folder = prepared(name, given)
    if (prepared_folder / "meta.json").is_file():
        state = "prepared"
    elif half_prepared(name, given):
        state = "half prepared"
    elif not entry.files:
        state = "by hand"
    elif is_fetched(entry.files, folder):
        state = "downloaded"
    elif folder.is_dir() and any(folder.iterdir()):
        state = "half downloaded"
    else:
        state = "-"
    size = "" if entry.size is None else format_bytes(entry.size)
    taken = _taken(prepared_folder) if state == "prepared" else ""
    return (name, state, size, taken, entry.licence, entry.title)


def _taken(folder: Path) -> str:
    """The size of the files in a folder."""
    return format_bytes(sum(file.stat().st_size for file in folder.iterdir()))
