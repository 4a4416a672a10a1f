"""`promptax evaluate RUN`: measure a trained run again, under another protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.machine import started
from promptax.cli.parse import parse
from promptax.core.distributed import is_writer
from promptax.core.settings import Evaluation, Machine
from promptax.core.text import printable
from promptax.methods.registry import named_class
from promptax.runs.experiment import Session
from promptax.runs.opening import evaluate
from promptax.training.evaluate import Measurement


@dataclass(frozen=True)
class Evaluate:
    """Measure a run again, as of its last finished task, on all tasks that it has learned."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    method: str | None = None
    """Your own method that the run was trained with, as path/to/file.py:Class. Its code only runs
    if you name it here."""
    weights: Path | None = None
    """The file of the run's weights. If None, it is looked for by its digest: where it was, in the
    run folder, beside it, and among downloaded weights."""
    dir: Annotated[Path | None, tyro.conf.arg(name="data-dir")] = None
    """Folder of prepared sets, if it has moved since the run."""
    eval: Evaluation = field(default_factory=Evaluation)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine()


def run(argv: Sequence[str]) -> None:
    """Parse, measure, and print a table of accuracies by task and protocol."""
    flags: Evaluate = parse(Evaluate, argv, prog="promptax evaluate")
    with started(flags.machine) as mesh:
        session, measurement = evaluate(
            flags.run,
            flags.eval,
            method=named_class(flags.method),
            weights=flags.weights,
            data_dir=flags.dir,
            mesh=mesh,
        )
        if is_writer():
            print(f"**{printable(flags.run)}: accuracy on each task** (%)\n")
            _print(session, measurement)


def _print(session: Session, measurement: Measurement) -> None:
    tasks = [split.name for split in session.stream.test_sets[: len(measurement.predicted)]]
    print("| protocol | " + " | ".join(tasks) + " | average |")
    columns = 1 + len(tasks) + 1  # the protocol, the tasks, and their average
    print("|---" * columns + "|")
    for name, accuracies in measurement.accuracy.items():
        cells = [f"{100 * value:.2f}" for value in (*accuracies, accuracies.mean())]
        print(f"| {name} | " + " | ".join(cells) + " |")
