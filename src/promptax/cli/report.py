"""`promptax report RUN...`: a table and a figure of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.report import table
from promptax.run import RunFolder


@dataclass(frozen=True)
class Report:
    """Print a table of runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""


def run(argv: Sequence[str]) -> None:
    """Parse, read the results, and print the table."""
    flags = parse(Report, argv, prog="promptax report")
    folders = [RunFolder(path) for path in flags.runs]
    print(table([folder.read(folder.result) for folder in folders]))
