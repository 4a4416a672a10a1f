"""`promptax train METHOD`: train a method on a stream of tasks."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from promptax.cli.fetching import fetch_missing_data, fetch_missing_weights
from promptax.cli.machine import started
from promptax.cli.output import tell
from promptax.cli.parse import parse, take
from promptax.cli.void import refuse_void, refuse_void_settings
from promptax.core.distributed import is_writer
from promptax.core.errors import UserError
from promptax.core.settings import (
    ClassMask,
    Evaluation,
    Images,
    Machine,
    Optimizer,
    Recipe,
    Replay,
    Saving,
    Schedule,
)
from promptax.methods.base import AbstractMethod
from promptax.methods.registry import (
    builtin_methods,
    load_method,
    method_class,
    method_name,
)
from promptax.methods.rehearsal import can_be_rehearsed
from promptax.nn.weights import BUNDLED, read_backbone
from promptax.runs.config import read_config, written_config
from promptax.runs.experiment import Experiment
from promptax.runs.extend import extension
from promptax.runs.folder import RunFolder
from promptax.runs.inputs import Backbone, Data, Found
from promptax.runs.naming import default_folder
from promptax.runs.opening import open_experiment
from promptax.runs.preprocessing import as_in_pretraining, pretraining_of
from promptax.runs.presets import default_for, departures, preset, with_defaults
from promptax.runs.report import table

M = TypeVar("M", bound=AbstractMethod)
MAX_SEED = 2**32
HELP = frozenset({"-h", "--help", "--help-all"})
TRAINED_BY = frozenset(
    {
        "--epochs",
        "--batch-size",
        "--optimizer",
        "--learning-rate",
        "--schedule",
        "--weight-decay",
        "--class-mask",
        "--buffer-size",
        "--checkpoint-every",
    }
)
"""Common flags of methods that take training steps."""
COMMON = frozenset(
    {
        "--data.stream",
        "--data.train",
        "--data.test",
        "--data.tasks",
        "--data.per-class",
        "--data.joint",
        "--data-dir",
        "--weights",
        "--images.size",
        "--eval.every",
        "--seeds",
        "--run",
        "--resume",
        "--overwrite",
        "--print-config",
    }
)
"""Common flags of all methods; `--help` shows these and those of the method itself."""
FIRST_GROUPS = (
    "schedule options",
    "optimizer options",
    "data options",
    "backbone options",
    "method options",
)
"""Groups of flags in the order of the help; the others follow."""


@dataclass(frozen=True)
class Train(Generic[M]):
    """Train a method on a stream of tasks.

    Without further options, this runs the method's tuned preset on images and weights that come
    with the package. `--preset NAME` or `--config FILE` starts from other settings; a flag changes
    each of them. `--method path/to/file.py:Class` trains a method of your own.
    """

    method: tyro.conf.OmitArgPrefixes[M]
    data: Data
    backbone: tyro.conf.OmitArgPrefixes[Backbone]
    optimizer: tyro.conf.OmitArgPrefixes[Optimizer]
    schedule: tyro.conf.OmitArgPrefixes[Schedule]
    images: Images
    eval: Evaluation
    class_mask: ClassMask = "task"
    """Which classes compete in the softmax of the training loss. task: those of the current task;
    seen: those of all tasks so far; none: all classes of the stream, even those that are still to
    come. With a replay buffer, the classes of earlier tasks compete in any case."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """One run for each seed. It decides initialisation, order of examples and augmentation."""
    run: Path | None = None
    """Folder of the run; with several seeds, each gets a folder inside it. Without it, the folder
    is runs/STREAM-METHOD, followed by the settings that differ from the defaults and by the
    seed."""
    extend: Path | None = None
    """Go on from this finished run with new classes, whose data --data.stream or --data.train
    names. The head and all that belongs to tasks grow; the other settings are those of the run."""
    resume: bool = False
    """Go on from the last checkpoint of the run in the folder."""
    overwrite: bool = False
    """Delete the files of the run that is in the folder, and start again."""
    fetch: bool = False
    """First download the data and weights that are not on this machine, and prepare the data."""
    print_config: bool = False
    """Print all settings as YAML, which --config reads, instead of training."""
    saving: tyro.conf.OmitArgPrefixes[Saving] = Saving()
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine()

    def __post_init__(self):
        are_distinct = len(set(self.seeds)) == len(self.seeds)
        if not self.seeds or not are_distinct or not all(0 <= s < MAX_SEED for s in self.seeds):
            raise UserError(f"seeds are {self.seeds}; expected different numbers from 0 to 2^32.")

    @property
    def buffer(self) -> Replay:
        """The replay buffer beside the method; none unless there are flags for one."""
        return Replay()

    def runs(self) -> list[tuple[Experiment, Path, Found | None]]:
        """The experiments that are asked for, their folders, and where their weights are now."""
        recipe = Recipe(self.optimizer, self.schedule, self.images, self.eval, self.class_mask)
        first = Experiment(
            self.method, self.data, self.backbone, recipe, self.seeds[0], self.buffer
        )
        if self.extend is not None:
            if len(self.seeds) > 1:
                raise UserError("--extend goes on with the seed of the run: leave out --seeds.")
            longer, found = extension(first, self.extend)
            return [(longer, self.run or default_folder(longer), found)]
        each = [dataclasses.replace(first, seed=seed) for seed in self.seeds]
        if self.run is None:
            return [(experiment, default_folder(experiment), None) for experiment in each]
        if len(each) == 1:
            return [(first, self.run, None)]
        return [(experiment, self.run / f"seed-{experiment.seed}", None) for experiment in each]


@dataclass(frozen=True)
class TrainWithReplay(Train[M], Generic[M]):
    """Train a method on a stream of tasks.

    Without further options, this runs the method's tuned preset on images and weights that come
    with the package. `--preset NAME` or `--config FILE` starts from other settings; a flag changes
    each of them. `--method path/to/file.py:Class` trains a method of your own. `--buffer-size`
    adds a replay buffer of earlier images to the method.
    """

    replay: tyro.conf.OmitArgPrefixes[Replay] = Replay()

    @property
    def buffer(self) -> Replay:
        """The replay buffer beside the method."""
        return self.replay


def run(argv: Sequence[str]) -> None:
    """Parse, train, and print a table of the results."""
    start, rest = _start(list(argv))
    if start is None:
        print(_usage())
        return
    flags = _parse_flags(start, rest)
    refuse_void(flags, argv)
    if flags.print_config:
        if len(flags.seeds) > 1:
            raise UserError(
                f"a config holds one seed, but --seeds gives {len(flags.seeds)}: leave --seeds out "
                "here, and give it beside --config."
            )
        experiment, _, _ = flags.runs()[0]
        print(written_config(experiment), end="")
        return
    if flags.fetch:
        fetch_missing_data(flags.data)
        if flags.backbone.weights is not None:
            fetch_missing_weights(flags.backbone.weights)
    # TensorBoard's writer imports slowly where PyTorch is installed: not for help and mistakes.
    from promptax.runs.runner import train

    options = {"resume": flags.resume, "overwrite": flags.overwrite}
    with started(flags.machine) as mesh:
        runs = flags.runs()
        for experiment, path, _ in runs:
            RunFolder(path).check(experiment.to_json(), **options)  # all, before the first trains
        if is_writer():
            for warning in departures(start, runs[0][0]):
                tell(f"warning: {warning}", longest=None)
        results = [
            train(experiment, path, saving=flags.saving, mesh=mesh, found=found, **options)
            for experiment, path, found in runs
        ]
        if is_writer():
            print(table(results))
            print("\nrun folder: " + ", ".join(str(path) for _, path, _ in runs))


def _parse_flags(start: Experiment, rest: Sequence[str]) -> Train:
    """The flags of a method, whose defaults are an experiment's settings."""
    kind = type(start.method)
    default = flags_of(start)
    flags: Any = type(default)
    return parse(
        flags[kind],
        rest,
        default=default,
        prog=f"promptax train {method_name(start.method)}",
        # A method that takes no training steps ignores the settings of such steps.
        common=COMMON if kind.loss is None else COMMON | TRAINED_BY,
        order=FIRST_GROUPS,
    )


def flags_of(start: Experiment) -> Train:
    """The flags that a method has, with an experiment's settings as their values."""
    values: dict[str, Any] = {
        "method": start.method,
        "data": start.data,
        "backbone": start.backbone,
        "optimizer": start.recipe.optimizer,
        "schedule": start.recipe.schedule,
        "images": start.recipe.images,
        "eval": start.recipe.evaluation,
        "class_mask": start.recipe.class_mask,
        "seeds": (start.seed,),
    }
    if can_be_rehearsed(type(start.method)):
        return TrainWithReplay(**values, replay=start.replay)
    return Train(**values)


def _start(argv: list[str]) -> tuple[Experiment | None, list[str]]:
    """The experiment whose fields are the defaults of the flags, and the flags."""
    config, others = take(argv, "--config")
    if config is not None:
        return _from_config(Path(config), others)
    start, rest = _chosen(argv)
    weights = take(rest, "--weights")[0]
    if start is None or weights is None:
        return start, rest
    return _with_images_of_weights(start, weights, rest), rest


def _with_images_of_weights(start: Experiment, weights: str, rest: list[str]) -> Experiment:
    """The experiment, with images prepared as in the pre-training of weights that replace its own.

    The presets of what comes with the package prepare images for its small ViT. Those of the papers
    prepare them as the papers did, whatever the weights.
    """
    own = start.backbone.weights
    is_help = bool(HELP & set(rest))
    if weights in (own, "random") or own not in BUNDLED or is_help:
        return start
    if "--fetch" in rest:
        fetch_missing_weights(weights)
    images = as_in_pretraining(start.recipe.images, pretraining_of(read_backbone(weights)))
    return dataclasses.replace(start, recipe=dataclasses.replace(start.recipe, images=images))


def _chosen(argv: list[str]) -> tuple[Experiment | None, list[str]]:
    """The preset, or the method with its defaults, and the flags.

    The method comes first (or with `--method`) and decides which flags there are; a preset can name
    it too.
    """
    preset_name, rest = take(argv, "--preset")
    given, rest = take(rest, "--method")
    if rest and not rest[0].startswith("-"):
        first = rest.pop(0)
        if given not in (None, first):
            raise UserError(f"two methods are given, '{first}' and '{given}': choose one.")
        given = first
    if given == "joint":
        raise UserError(
            "joint training is a property of the stream, not a method: use "
            "`promptax train linear --data.joint` (or `finetune`)."
        )
    method = None if given is None else load_method(given)
    finished = take(rest, "--extend")[0]
    if finished is not None:
        return _extended(Path(finished), rest, method, preset_name), rest
    if preset_name is not None:
        start = preset(preset_name)
        if method not in (None, method_name(start.method)):
            start = dataclasses.replace(start, method=with_defaults(method))
        return start, rest
    if method is None:
        if not rest or HELP & set(rest):
            return None, rest
        names = ", ".join(builtin_methods())
        raise UserError(f"say which method to train: {names}, or give a --preset.")
    stream = take(rest, "--data.stream")[0] or Data().stream
    return default_for(method, stream), rest


def _extended(
    finished: Path, rest: list[str], method: str | None, preset_name: str | None
) -> Experiment:
    """The settings of a finished run, whose data are still to be given."""
    if preset_name is not None:
        raise UserError(f"--extend goes on with the settings of '{finished}': leave out --preset.")
    given = [take(rest, flag)[0] for flag in ("--data.stream", "--data.sets", "--data.train")]
    if not any(given):
        raise UserError(
            "--extend needs the data of the new classes: give --data.stream, --data.sets, or "
            "--data.train and --data.test."
        )
    kind = None if method is None else method_class(method)
    before = open_experiment(RunFolder(finished), kind)
    return dataclasses.replace(before, data=Data(dir=before.data.dir), extends=None, earlier=())


def _from_config(path: Path, argv: list[str]) -> tuple[Experiment, list[str]]:
    """The experiment of a file, such as the config of an earlier run, and the flags."""
    given, rest = take(argv, "--method")
    is_own = given is not None and given.rpartition(":")[0].endswith(".py")
    named = [] if given is None or is_own else [given]
    if rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    for flag in ("--preset", "--extend"):
        if take(rest, flag)[0] is not None:
            raise UserError(f"--config and {flag} both say where to start from: choose one.")
    weights = take(rest, "--weights")[0]
    start, settings = read_config(
        path,
        load_method(given) if given is not None and is_own else None,
        # The flag overrides the weights of the file, whose other settings stay.
        lambda preset, named: _with_images_of_weights(preset, weights or named, rest),
    )
    own = method_name(start.method)
    if wrong := [name for name in named if name != own]:
        raise UserError(
            f"--config '{path}' is for {own}, not for {wrong[0]}: leave out {wrong[0]}."
        )
    if start.extends is not None:
        raise UserError(
            f"'{path}' is of a run that goes on from '{start.extends}': use --extend instead."
        )
    if start.earlier:
        raise UserError(
            f"'{path}' has `earlier`, the data of a run that another one goes on from: leave it "
            "out, and give that run with --extend."
        )
    if "schema" not in settings:
        # A config that promptax wrote has all settings, whether they have an effect or not.
        try:
            refuse_void_settings(flags_of(start), settings)
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None
    return start, rest


def _usage() -> str:
    described = [
        f"  {name:<11} {(inspect.getdoc(method_class(name)) or '').splitlines()[0]}"
        for name in builtin_methods()
    ]
    return "\n".join(
        [
            "usage: promptax train {" + ",".join(builtin_methods()) + "} [OPTIONS]",
            "       promptax train --method path/to/file.py:Class [OPTIONS]",
            "       promptax train --preset NAME [OPTIONS]",
            "       promptax train --config FILE [OPTIONS]",
            "       promptax train --extend RUN --data.train FILE --data.test FILE [OPTIONS]",
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
