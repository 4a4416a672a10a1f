"""The command line. This file imports nothing heavy, so that `promptax --help` answers at once."""

import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence

from promptax.core.errors import UserError, unknown
from promptax.core.interrupt import Terminated, deferred_interrupts

COMMANDS = {
    "train": "train a method on a stream of tasks",
    "evaluate": "measure a run again, under another protocol",
    "reproduce": "run an experiment again, and compare",
    "report": "make a table and a figure of runs",
    "predict": "name the classes of image files with a run",
    "data": "fetch, prepare and look at data sets",
    "presets": "list the experiments that are ready to run",
    "weights": "fetch, convert, inspect and list pre-trained weights",
    "doctor": "check versions, devices, disk, data, weights and numbers",
}
RESUMABLE = ("train", "reproduce")
LONGEST = 600
"""Characters of an answer to a mistake: a name can have thousands."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 where a check did not succeed, 2 after a user's mistake, 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may know fewer characters than the names of files have.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _leave(_answer(argv))
        finally:
            sys.stdout.flush()
    except OSError as error:
        _give_up_output()
        if isinstance(error, BrokenPipeError):
            return 0  # the reader (`| head`) has gone
        print(f"promptax: {error.strerror or error}.", file=sys.stderr)
        return 2


def _give_up_output() -> None:
    """What can't be written now must not be tried again, with a traceback, when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int) -> int:
    """The code; but after an error as one of several processes, end with it at once.

    JAX would wait for the others, and they learn from this end that they need not wait.
    """
    jax = sys.modules.get("jax")
    if code and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    return code


def _answer(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    try:
        return _run(name, rest)
    except UserError as error:
        print(f"promptax: {_printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        # Wherever a name is looked up, it can be too long, and a disk can be gone.
        if error.filename is None:
            raise
        name = _printable(str(error.filename))
        print(f"promptax: '{name}': {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how, code = "interrupted", INTERRUPTED
        if isinstance(error, Terminated):
            how, code = "terminated", TERMINATED
        hint = " What is saved is kept: go on with --resume." if name in RESUMABLE else ""
        print(f"promptax: {how}.{hint}", file=sys.stderr)
        return code


def _run(name: str, rest: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"promptax {version('promptax')}")
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    _quiet()
    with deferred_interrupts() as interrupts:
        command = importlib.import_module(f"promptax.cli.{name}")
        interrupts.check()
    return command.run(rest) or 0


def _printable(text: str) -> str:
    """Names of files and leaves can hold line breaks and what a terminal takes for commands."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]}...{shown[-LONGEST // 3 :]}"


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
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Orbax logs what it then raises
    logging.getLogger("promptax").setLevel(logging.INFO)
