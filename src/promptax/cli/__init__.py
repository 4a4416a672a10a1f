"""The command line. This file imports nothing heavy, so that `promptax --help` answers at once."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from promptax.cli.output import (
    EscapedOutput,
    give_up_stdout,
    in_flags,
    open_streams,
    start_logging,
    tell,
)
from promptax.core.errors import UserError, unknown
from promptax.core.interrupt import Terminated, deferred_interrupts, repeated_interrupts

COMMANDS = {
    "train": "train a method on a stream of tasks",
    "evaluate": "measure a run again, under another protocol",
    "reproduce": "run an experiment again, and compare",
    "report": "make a table and a figure of runs",
    "predict": "name the classes of image files with a run",
    "export": "write a run as a program that needs nothing but JAX",
    "data": "fetch, prepare and look at data sets",
    "presets": "list the experiments that are ready to run",
    "weights": "fetch, convert, inspect and list pre-trained weights",
    "completion": "print a script by which the shell completes commands and flags",
    "doctor": "check versions, devices, disk, data, weights and numbers",
}
RESUMABLE = ("train", "reproduce")
USER_ERROR = 2
"""Exit code after a mistake of the user's."""
SIGNALLED = 128
"""Exit code after a signal, less the number of the signal."""


def main(argv: Sequence[str] | None = None, *, ready: Callable[[], object] | None = None) -> int:
    """Run a command and return its exit code.

    0 after success (also if the reader of the output has gone), 1 if a check did not succeed, 2
    after a user's mistake, 129 after SIGHUP, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        argv: the arguments; those of the process, if None.
        ready: called as soon as Ctrl-C is handled here.
    """
    open_streams()
    try:
        try:
            with redirect_stdout(EscapedOutput(sys.stdout)), repeated_interrupts():
                return _end_with(_answer(argv, ready))
        finally:
            sys.stdout.flush()
    except OSError as error:
        give_up_stdout()
        if isinstance(error, BrokenPipeError):
            return 0  # the reader (`| head`) has gone
        tell(f"{error.strerror or error}.")
        return USER_ERROR


def _end_with(code: int) -> int:
    """Return the code; but after an error as one of several processes, end with it at once.

    JAX would wait for the others, and they learn from this end that they need not wait.
    """
    jax = sys.modules.get("jax")
    if code and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    return code


def _answer(argv: Sequence[str] | None, ready: Callable[[], object] | None) -> int:
    """Run a command, and tell the user in a line why it failed."""
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    try:
        if ready is not None:
            ready()
        return _run(name, rest)
    except UserError as error:
        tell(in_flags(str(error)))
        return USER_ERROR
    except OSError as error:
        # Wherever a name is looked up, it can be too long, and a disk can be gone.
        if error.filename is None:
            raise
        tell(f"'{error.filename}': {error.strerror}.")
        return USER_ERROR
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        how = "terminated" if terminated else "interrupted"
        hint = " What is saved is kept: go on with --resume." if name in RESUMABLE else ""
        tell(f"{how}.{hint}")
        return SIGNALLED + (error.number if terminated else signal.SIGINT)


def _run(name: str, rest: Sequence[str]) -> int:
    if name == "help" and rest:
        name = rest[0]
        rest = ["--help"]
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"promptax {version('promptax')}")
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    start_logging()
    with deferred_interrupts() as interrupts:
        # A Ctrl-C inside the import of an extension would become another error.
        command = importlib.import_module(f"promptax.cli.{name}")
        interrupts.check()
    return command.run(rest) or 0


def _usage() -> str:
    lines = [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
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
