"""`promptax data fetch NAME`: download a set from its authors' server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.core.errors import UserError, unknown
from promptax.data.catalog import CATALOG
from promptax.data.fetch import fetch
from promptax.data.location import data_dir_flags, downloads


@dataclass(frozen=True)
class Fetch:
    """Download a set from its authors' server.

    A download that was stopped is resumed. Checksums are compared if they are published. The proxy
    in HTTP_PROXY and HTTPS_PROXY is used.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of a set, as `promptax data list` shows it."""
    prepare: bool = False
    """Prepare the set too, with the default settings of its format."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Fetch a set, and prepare it or print the command that does."""
    flags: Fetch = parse(Fetch, argv, prog="promptax data fetch")
    if flags.name not in CATALOG:
        raise unknown("data set", flags.name, CATALOG)
    entry = CATALOG[flags.name]
    folder = downloads(flags.name, flags.data_dir)
    if not entry.files:
        raise UserError(
            f"{flags.name} {entry.by_hand}. Then run `promptax data prepare {flags.name} PATH`."
        )
    print(f"{entry.title}. Licence: {entry.licence} ({entry.homepage}).", flush=True)
    fetch(entry.files, folder)
    print(f"fetched: {folder}")
    if flags.prepare:
        from promptax.cli.data import prepare

        prepare.run([flags.name, *data_dir_flags(flags.data_dir)])
    else:
        print(
            " ".join(
                ["now run: promptax data prepare", flags.name, *data_dir_flags(flags.data_dir)]
            )
        )
