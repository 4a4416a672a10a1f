"""`promptax reproduce RUN`: run an experiment again, and compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.methods.registry import named_class
from promptax.runs.reproduce import reproduce


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment again, and report what differs and whether it matters.

    It compares the settings, the digests of weights, split and images, the versions, the machine,
    the accuracies, and the digest of the trained parameters. The exit code is 0 if the result is
    the same, and 1 if it is not.
    """

    original: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run."""
    run: Path | None = None
    """Folder of the new run. If None: the folder of the original with -reproduced at its end."""
    method: str | None = None
    """Your own method that the run was trained with, as path/to/file.py:Class. Its code only runs
    if you name it here."""
    weights: Path | None = None
    """The file of the run's weights. If None, it is looked for by its digest: where it was, in the
    run folder, beside it, and among downloaded weights."""
    dir: Annotated[Path | None, tyro.conf.arg(name="data-dir")] = None
    """Folder of prepared sets, if it has moved since the run."""
    resume: bool = False
    """Go on with a repetition that was stopped."""
    overwrite: bool = False
    """Delete the run that is in the new folder, and start again."""


def run(argv: Sequence[str]) -> int:
    """Parse, run, and print what differs."""
    flags: Reproduce = parse(Reproduce, argv, prog="promptax reproduce")
    original = Path.cwd() / flags.original
    again = flags.run or original.parent / f"{original.name}-reproduced"
    done = reproduce(
        flags.original,
        again,
        method=named_class(flags.method),
        weights=flags.weights,
        data_dir=flags.dir,
        resume=flags.resume,
        overwrite=flags.overwrite,
    )
    print("\n".join(done.lines()))
    return 0 if done.succeeded else 1
