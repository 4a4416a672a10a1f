"""`promptax data`: fetch, prepare and look at data sets. Imports nothing heavy."""

import importlib
import sys
from collections.abc import Sequence

from promptax.core.errors import UserError, unknown

COMMANDS = {
    "list": "the sets that are known, and what is here of them",
    "fetch": "download a set from where its authors publish it",
    "prepare": "decode a set once, into files that training maps into memory",
    "info": "images by class and group, and a picture of some",
    "verify": "read a prepared set and compare it with its digests",
}
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def run(argv: Sequence[str]) -> None:
    """Run the command that comes first."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name.startswith("-"):
        raise UserError(f"say what to do with data: {', '.join(COMMANDS)}.")
    if name not in COMMANDS:
        raise unknown("command of `promptax data`", name, COMMANDS)
    try:
        importlib.import_module(f"promptax.cli.data.{name}").run(rest)
    except KeyboardInterrupt:
        print("promptax: interrupted. The same command goes on where it ended.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _usage() -> str:
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: promptax data COMMAND ...",
            "",
            "Sets are kept in the folder that --data-dir or the variable PROMPTAX_DATA names, or",
            "else in the user's cache: downloads in `downloads/NAME`, prepared sets in `NAME`.",
            "",
            "commands:",
            *lines,
            "",
            "`promptax data COMMAND --help` lists the options of a command.",
        ]
    )
