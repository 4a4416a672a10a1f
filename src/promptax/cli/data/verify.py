"""`promptax data verify NAME`: read a prepared set and compare it with its digests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.data.location import open_dataset


@dataclass(frozen=True)
class Verify:
    """Read a prepared set from end to end and compare it with the digests of its `meta.json`."""

    name: Annotated[str, tyro.conf.Positional]
    """Of a prepared set."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or one in the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Parse, and print the digest of the set if every file has its own."""
    flags: Verify = parse(Verify, argv, prog="promptax data verify")
    dataset = open_dataset(flags.name, flags.data_dir)
    dataset.verify()
    print(f"{flags.name} is as it was prepared: sha256 {dataset.sha256}")
