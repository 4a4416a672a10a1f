"""`promptax completion SHELL`: a script by which the shell completes commands and flags.

tyro writes such scripts for a command whose flags are known as types. Here the types of all
commands are put together into one, which exists for this purpose only.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import tyro

from promptax.cli import weights
from promptax.cli.data import fetch, info, prepare, verify
from promptax.cli.data import list as data_list
from promptax.cli.doctor import Doctor
from promptax.cli.evaluate import Evaluate
from promptax.cli.export import Export
from promptax.cli.parse import parse
from promptax.cli.predict import Predict
from promptax.cli.presets import Presets
from promptax.cli.report import Report
from promptax.cli.reproduce import Reproduce
from promptax.cli.train import flags_of
from promptax.data.formats import ImageFolder
from promptax.methods.registry import builtin_methods
from promptax.runs.inputs import Data
from promptax.runs.presets import PRESETS, default_for

Shell = Literal["bash", "zsh"]


@dataclass(frozen=True)
class Completion:
    """Print a script by which the shell completes commands, methods, flags and their choices.

    For bash: promptax completion bash > ~/.local/share/bash-completion/completions/promptax.
    For zsh: write it to a file _promptax in a folder of fpath.
    """

    shell: Annotated[Shell, tyro.conf.Positional]
    """The shell that reads the script."""


def run(argv: Sequence[str]) -> None:
    """Print the script for the shell that the arguments name, for its configuration to read."""
    flags: Completion = parse(Completion, argv, prog="promptax completion")
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(all_commands(), prog="promptax", args=["--tyro-print-completion", flags.shell])
    print(script.getvalue(), end="")


def all_commands() -> Any:
    """The type of a choice between all commands."""
    commands = {
        "train": _train(),
        "evaluate": Evaluate,
        "reproduce": Reproduce,
        "report": Report,
        "predict": Predict,
        "export": Export,
        "data": data_commands(),
        "presets": Presets,
        "weights": _choice({kind.__name__.lower(): kind for kind in get_args(weights.COMMANDS)}),
        "completion": Completion,
        "doctor": Doctor,
    }
    return _choice(commands)


def data_commands() -> Any:
    """The type of a choice between the commands of `promptax data`."""
    # The flags of `prepare` depend on how a set is stored; those shown are of class folders.
    folders = ImageFolder()
    commands = {
        "list": data_list.List,
        "fetch": fetch.Fetch,
        "prepare": prepare.Prepare[type(folders)],
        "info": info.Info,
        "verify": verify.Verify,
    }
    return _choice(commands, {"prepare": prepare.Prepare(folders)})


def _choice(commands: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
    """The type of a choice between commands."""
    defaults = defaults or {}
    members = []
    for name, kind in commands.items():
        given = {"default": defaults[name]} if name in defaults else {}
        members.append(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, **given)])
    return Union[tuple(members)]  # noqa: UP007, the members are not known in advance


def _train() -> Any:
    """The flags of `promptax train`: a method with its own, or where to start from."""
    methods = {}
    defaults = {}
    for name, kind in builtin_methods().items():
        start = flags_of(default_for(name, Data().stream))
        flags: Any = type(start)
        methods[name] = flags[kind]
        defaults[name] = start
    preset: Any = Literal[tuple(PRESETS)]
    fields = [
        ("method", Annotated[_choice(methods, defaults), tyro.conf.arg(name="")]),
        ("preset", preset | None, None),
        ("config", Path | None, None),
    ]
    return make_dataclass("Train", fields)
