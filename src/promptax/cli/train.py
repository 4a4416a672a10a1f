"""`promptax train METHOD`: train a method on a stream of tasks."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from promptax.cli.machine import started
from promptax.cli.parse import parse, take
from promptax.core.distributed import is_writer
from promptax.core.errors import UserError, unknown
from promptax.core.settings import Images, Machine, Optimizer, Protocol, Recipe, Saving, Schedule
from promptax.methods.base import AbstractMethod
from promptax.runs.experiment import METHODS, Experiment, method_name
from promptax.runs.folder import RunFolder
from promptax.runs.inputs import Backbone, Data
from promptax.runs.presets import default_for, preset
from promptax.runs.report import table
from promptax.runs.runner import train

M = TypeVar("M", bound=AbstractMethod)


@dataclass(frozen=True)
class Train(Generic[M]):
    """Train a method on a stream of tasks.

    Without further options it runs its tuned preset on images and weights that come with the
    package. `--preset NAME` starts from another one; every field can be overridden.
    """

    method: tyro.conf.OmitArgPrefixes[M]
    data: Data
    backbone: tyro.conf.OmitArgPrefixes[Backbone]
    optimizer: tyro.conf.OmitArgPrefixes[Optimizer]
    schedule: tyro.conf.OmitArgPrefixes[Schedule]
    images: Images
    eval: Protocol
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """One run for each: of initialisation, order of examples and augmentation."""
    run: Path | None = None
    """Folder of the run; runs/STREAM-METHOD, if None. Several seeds get a folder each in it."""
    resume: bool = False
    """Go on from the last checkpoint."""
    overwrite: bool = False
    """Delete the run that is in the folder, and start again."""
    saving: tyro.conf.OmitArgPrefixes[Saving] = Saving()
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine()

    def __post_init__(self):
        distinct = len(set(self.seeds)) == len(self.seeds)
        if not self.seeds or not distinct or not all(0 <= s < 2**32 for s in self.seeds):
            raise UserError(f"seeds are {self.seeds}; expected different numbers from 0 to 2^32.")

    def runs(self) -> list[tuple[Experiment, Path]]:
        """The experiments that are asked for, and their folders."""
        recipe = Recipe(self.optimizer, self.schedule, self.images, self.eval)
        stream = self.data.stream if self.data.train is None else self.data.train.stem
        folder = self.run or Path("runs") / f"{stream}-{method_name(self.method)}"
        return [
            (
                Experiment(self.method, self.data, self.backbone, recipe, seed),
                folder / f"seed-{seed}" if len(self.seeds) > 1 else folder,
            )
            for seed in self.seeds
        ]


def run(argv: Sequence[str]) -> None:
    """Parse, train, and print a table of the results."""
    start, rest = _start(list(argv))
    if start is None:
        print(_usage())
        return
    recipe = start.recipe
    default = Train(
        start.method,
        start.data,
        start.backbone,
        recipe.optimizer,
        recipe.schedule,
        recipe.images,
        recipe.protocol,
        (start.seed,),
    )
    name = method_name(start.method)
    flags: Train = parse(
        Train[type(start.method)], rest, prog=f"promptax train {name}", default=default
    )
    options = {"resume": flags.resume, "overwrite": flags.overwrite}
    with started(flags.machine) as mesh:
        for experiment, path in flags.runs():
            RunFolder(path).check(experiment.to_json(), **options)  # all, before the first trains
        results = [train(*each, saving=flags.saving, mesh=mesh, **options) for each in flags.runs()]
        if is_writer():
            print(table(results))
            print("\nrun folder: " + ", ".join(str(path) for _, path in flags.runs()))


def _start(argv: list[str]) -> tuple[Experiment | None, list[str]]:
    """The experiment whose fields are the defaults of the flags, and the flags.

    The method comes first and decides which flags there are; a preset can name it too.
    """
    named, rest = take(argv, "--preset")
    method = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if method is not None and method not in METHODS:
        raise unknown("method", method, METHODS)
    if named is not None:
        start = preset(named)
        if method not in (None, method_name(start.method)):
            start = dataclasses.replace(start, method=METHODS[method]())
        return start, rest
    if method is None:
        if not rest or {"-h", "--help"} & set(rest):
            return None, rest
        raise UserError(f"say which method to train: {', '.join(METHODS)}, or give a --preset.")
    stream = take(rest, "--data.stream")[0] or Data().stream
    return default_for(method, stream), rest


def _usage() -> str:
    described = [
        f"  {name:<11} {(inspect.getdoc(kind) or '').splitlines()[0]}"
        for name, kind in METHODS.items()
    ]
    return "\n".join(
        [
            "usage: promptax train {" + ",".join(METHODS) + "} [OPTIONS]",
            "       promptax train --preset NAME [OPTIONS]",
            "",
            *(inspect.getdoc(Train) or "").splitlines(),
            "",
            "methods:",
            *described,
            "",
            "`promptax train METHOD --help` lists the options of a method;",
            "`promptax presets` lists the presets.",
        ]
    )
