"""`promptax data fetch NAME`: download a set from where its authors publish it."""

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
    """Download a set from where its authors publish it.

    A download that was stopped goes on where it ended. Checksums are compared where they are
    published. A proxy is taken from HTTP_PROXY and HTTPS_PROXY.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Of a set that `promptax data list` shows."""
    prepare: bool = False
    """Prepare the set too, with the settings of its format."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or one in the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Parse, fetch, and say what comes next or do it."""
    flags: Fetch = parse(Fetch, argv, prog="promptax data fetch")
    if flags.name not in CATALOG:
        raise unknown("data set", flags.name, CATALOG)
    entry, folder = CATALOG[flags.name], downloads(flags.name, flags.data_dir)
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
