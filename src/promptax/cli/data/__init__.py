"""`promptax data`: fetch, prepare and inspect data sets.

The commands are imported when they run, so that the help appears at once.
"""

import importlib
import sys
from collections.abc import Sequence

from promptax.core.errors import UserError, unknown

COMMANDS = {
    "list": "list the streams to train on, and the data sets they are made of",
    "fetch": "download a set from its authors' server",
    "prepare": "decode the images of a set once, into files that are quick to read",
    "info": "count the images of a set or stream by class and group, and draw some of them",
    "verify": "compare the files of a prepared set with their digests",
}
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def run(argv: Sequence[str]) -> None:
    """Run the command that the first argument names."""
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
            "Data sets are kept in the folder given by --data-dir or the environment variable",
            "PROMPTAX_DATA, and in the user's cache by default: downloads in `downloads/NAME`,",
            "prepared sets in `NAME`.",
            "",
            "commands:",
            *lines,
            "",
            "`promptax data COMMAND --help` lists the options of a command.",
        ]
    )
