"""The command line. This file imports nothing heavy, so that `promptax --help` answers at once."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from promptax.errors import UserError, unknown
from promptax.interrupt import deferred_interrupts

COMMANDS = {
    "train": "train a method on a stream of tasks",
    "evaluate": "measure a run again, under another protocol",
    "report": "make a table and a figure of runs",
    "predict": "name the classes of image files with a run",
    "data": "fetch, prepare and look at data sets",
    "presets": "list the experiments that are ready to run",
    "weights": "convert, inspect and list pre-trained weights",
}
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    try:
        try:
            return _answer(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone: there is nobody to tell, not even when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answer(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(_usage())
        elif name == "--version":
            from importlib.metadata import version

            print(f"promptax {version('promptax')}")
        elif name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        else:
            _quiet()
            with deferred_interrupts() as check_interrupt:
                command = importlib.import_module(f"promptax.cli.{name}")
                check_interrupt()
            command.run(rest)
    except UserError as error:
        print(f"promptax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "promptax: interrupted. Finished tasks are kept: go on with --resume.", file=sys.stderr
        )
        return INTERRUPTED
    return 0


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: promptax COMMAND ...",
            "",
            "Prompt-based continual learning in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "`promptax COMMAND --help` lists the options of a command.",
        ]
    )


def _quiet() -> None:
    """Show our own lines as they are, and of others' only errors."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it then raises
    logging.getLogger("promptax").setLevel(logging.INFO)
