"""`promptax data verify NAME`: compare the files of a prepared set with their digests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.data.location import open_dataset


@dataclass(frozen=True)
class Verify:
    """Read all files of a prepared set and compare them with the digests in its `meta.json`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of a prepared set."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Verify a set, and print its digest."""
    flags: Verify = parse(Verify, argv, prog="promptax data verify")
    dataset = open_dataset(flags.name, flags.data_dir)
    dataset.verify()
    print(f"{flags.name} is as it was prepared: sha256 {dataset.sha256}")
