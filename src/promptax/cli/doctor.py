"""`promptax doctor`: is everything here that a run needs, and do the numbers come out right?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.cli.parse import parse
from promptax.runs.doctor import examine


@dataclass(frozen=True)
class Doctor:
    """Check versions, devices, mesh, disk, memory, data and weights, and train for ten seconds.

    The exit code is 0 if all is well, and 1 if something is wrong.
    """

    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or one in the user's cache, if None."""
    numbers: bool = True
    """Train for ten seconds, and compare the losses with known ones."""


def run(argv: Sequence[str]) -> int:
    """Parse, and print what each check finds as soon as it does."""
    flags: Doctor = parse(Doctor, argv, prog="promptax doctor")
    problems = []
    for finding in examine(flags.data_dir, numbers=flags.numbers):
        print(finding, flush=True)
        problems += [finding.check] if finding.is_problem else []
    print(f"\nwrong: {', '.join(problems)}" if problems else "\nall is well")
    return 1 if problems else 0
