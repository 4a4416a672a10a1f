"""`promptax doctor`: check that everything a run needs is here, and that its numbers are right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.cli.output import in_flags
from promptax.cli.parse import parse
from promptax.core.interrupt import deferred_interrupts
from promptax.runs.doctor import examine


@dataclass(frozen=True)
class Doctor:
    """Check versions, devices, mesh, disk, memory, data and weights, and train for ten seconds.

    The exit code is 0 if everything is right, and 1 if there is a problem.
    """

    data_dir: Path | None = None
    """Folder of all data sets. If None: PROMPTAX_DATA, or a folder in the user's cache."""
    numbers: bool = True
    """Train for ten seconds, and compare the losses with known values."""


def run(argv: Sequence[str]) -> int:
    """Parse, and print what each check finds as soon as it does."""
    flags: Doctor = parse(Doctor, argv, prog="promptax doctor")
    problems = []
    with deferred_interrupts("stopping after this check") as interrupts:
        # The checks import libraries: a Ctrl-C inside that would be taken for a finding.
        for finding in examine(flags.data_dir, numbers=flags.numbers):
            interrupts.check()
            print(in_flags(str(finding)), flush=True)
            if finding.is_problem:
                problems.append(finding.check)
    print(f"\nwrong: {', '.join(problems)}" if problems else "\nall is well")
    return 1 if problems else 0
