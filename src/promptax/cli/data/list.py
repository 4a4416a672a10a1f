"""`promptax data list`: the known data sets, and which are downloaded or prepared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.cli.data.table import table
from promptax.cli.parse import parse
from promptax.core.text import format_bytes
from promptax.data.catalog import CATALOG, Entry
from promptax.data.fetch import is_fetched
from promptax.data.location import data_dir, downloads, half_prepared, own_names, prepared


@dataclass(frozen=True)
class List:
    """List the known data sets, and which of them are downloaded or prepared."""

    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Print a line for each set of the catalog and for each of the user's own."""
    flags: List = parse(List, argv, prog="promptax data list")
    rows = [_row(name, entry, flags.data_dir) for name, entry in CATALOG.items()]
    rows += [
        (name, "prepared", "", _taken(prepared(name, flags.data_dir)), "", "your own")
        for name in own_names(flags.data_dir)
    ]
    print(f"data folder: {data_dir(flags.data_dir)}\n")
    print(table([("name", "state", "download", "prepared", "licence", "set"), *rows]))


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
