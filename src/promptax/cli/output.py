"""Standard output and standard error, whatever they are connected to.

This file imports nothing heavy, so that `promptax --help` answers at once.
"""

import io
import logging
import os
import re
import sys
from contextlib import suppress
from typing import Any

from promptax.core.interrupt import STDOUT
from promptax.core.text import LONGEST, printable

_STREAMS = {0: ("stdin", "r"), STDOUT: ("stdout", "w"), 2: ("stderr", "w")}
"""File descriptors of the standard streams, with their names in `sys` and the mode to open them."""


class EscapedOutput(io.TextIOBase):
    """Standard output on which nothing from a file can command the terminal.

    Names of classes, leaves and runs come from files of other people, and can hold the sequences
    by which a terminal changes its colours, its title or what is already on the screen. Every
    command prints through this stream, so no command has to remember to escape them.
    """

    def __init__(self, plain: Any):
        super().__init__()
        self.plain = plain
        """The stream below, for the help of tyro, which is in colour."""

    def write(self, text: str, /) -> int:
        """Write a text; its line breaks are kept."""
        lines = text.split("\n")
        self.plain.write("\n".join(printable(line, longest=None) for line in lines))
        return len(text)

    def flush(self) -> None:
        """Pass on what is written so far."""
        self.plain.flush()

    def fileno(self) -> int:
        """The descriptor of the stream below."""
        return self.plain.fileno()

    def isatty(self) -> bool:
        """Whether the stream below is a terminal."""
        return self.plain.isatty()


def plain_output() -> Any:
    """Standard output without the escaping."""
    return sys.stdout.plain if isinstance(sys.stdout, EscapedOutput) else sys.stdout


def tell(message: str, longest: int | None = LONGEST) -> None:
    """Print one line of at most `longest` characters to standard error.

    If that is closed, there is nobody to tell.
    """
    with suppress(OSError):
        print(f"promptax: {printable(message, longest)}", file=sys.stderr, flush=True)


def in_flags(message: str) -> str:
    """A message with settings as they are written on the command line.

    The library names them as Python does: `Images(size=32)` becomes `--images.size 32`, and
    `Metadata(heads=...)`, with whatever value, `--heads`, and `resume=True` becomes `--resume`.
    """
    return _SWITCH.sub(r"--\1", _SETTINGS.sub(_flags, message))


def _flags(found: re.Match[str]) -> str:
    arguments = [argument.partition("=") for argument in found["arguments"].split(", ")]
    return " ".join(_flag(found["owner"], name, value) for name, _, value in arguments)


def _flag(owner: str, name: str, value: str) -> str:
    flag = f"--{_PREFIXES[owner]}{name.replace('_', '-')}"
    if flag in _OTHER_NAMES:
        return _OTHER_NAMES[flag]
    return flag if value in ("...", "True") else f"{flag} {value}"


_PREFIXES = {
    "Backbone": "",
    "Data": "data.",
    "Distributed": "distributed.",
    "DualPrompt": "",
    "Evaluation": "eval.",
    "Execution": "",
    "Images": "images.",
    "LabelTable": "",
    "Metadata": "",
    "Optimizer": "",
    "Replay": "",
    "Schedule": "",
    "make_mesh": "mesh.",
    "prepare": "",
}
"""The prefix of a flag, by the class or the function that has the setting in Python."""
_OTHER_NAMES = {
    "--data.dir": "--data-dir",
    "--distributed.on": "--distributed",
    "--damaged": "--skip-damaged",
}
"""Flags that are not named as the setting is."""
_ARGUMENT = r"\w+=[^(),]+"
_SETTINGS = re.compile(
    rf"\b(?P<owner>{'|'.join(_PREFIXES)})\((?P<arguments>{_ARGUMENT}(?:, {_ARGUMENT})*)\)"
)
_SWITCH = re.compile(r"\b(resume|overwrite)=True")


def open_streams() -> None:
    """Connect standard streams that are closed (`>&-`) to nowhere.

    Otherwise the next file that is opened gets the number of the closed stream, and what other
    libraries print would end up inside that file.
    """
    for descriptor, (name, mode) in _STREAMS.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may know fewer characters than the names of files have.
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up_stdout() -> None:
    """Drop what cannot be written: Python would try again, with a traceback, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start_logging() -> None:
    """Show the lines of this package as they are, and only errors of other libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.ERROR)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Orbax logs what it then raises
    logging.getLogger("promptax").setLevel(logging.INFO)


class _Printable(logging.Formatter):
    """Escapes what a terminal could take for a command, as `EscapedOutput` does."""

    def format(self, record: logging.LogRecord) -> str:
        lines = in_flags(super().format(record)).split("\n")
        return "\n".join(printable(line, longest=None) for line in lines)
