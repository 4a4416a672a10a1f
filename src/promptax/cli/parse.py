"""tyro, with its framed error messages cut to the one line that a user needs."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

import tyro

from promptax.cli.output import plain_output
from promptax.core.errors import UserError

NARROWEST = 40
"""Columns that the help is laid out for, however narrow the terminal is."""


def parse(kind: Any, argv: Sequence[str], *, prog: str, default: Any = None) -> Any:
    """Parse flags into a dataclass.

    Args:
        kind: the dataclass, or a union of several of which the first argument chooses one.
        argv: the arguments.
        prog: the command as the user types it, for the help.
        default: an instance of `kind` whose values are the defaults.

    Raises:
        UserError: the arguments do not parse.
        SystemExit: the arguments ask for help, which is printed.
    """
    captured = io.StringIO()
    arguments = {} if default is None else {"default": default}
    _widen_terminal()
    try:
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(plain_output()):
            return tyro.cli(kind, args=list(argv), prog=prog, **arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_condense(captured.getvalue())} See {prog} --help.") from None


def _widen_terminal() -> None:
    """Let tyro believe that the terminal has room: in a column or two its layout never ends."""
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take a flag out of the arguments, before tyro knows which dataclass to parse.

    Returns the value of the flag (`--flag value` or `--flag=value`), or None, and the other
    arguments. Raises `UserError` if the value is missing.
    """
    for n, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], argv[:n] + argv[n + 1 :]
        if word == flag:
            if n + 1 == len(argv):
                raise UserError(f"{flag} needs a value.")
            return argv[n + 1], argv[:n] + argv[n + 2 :]
    return None, argv


def _condense(framed: str) -> str:
    """One line out of a framed message of tyro: its first paragraph, and its first suggestion."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    # The title comes before the first rule, inside the frame or, without one, above the message.
    paragraphs = _RULE.split(plain)[1:]
    message = " ".join(paragraphs[0].translate(_FRAME).split()) if paragraphs else ""
    message = message or "the arguments do not parse"
    # Our own checks run while tyro builds a dataclass, whose name would not help the user.
    message = re.sub(r"^Error parsing (?!--)\S+: ", "", message)
    meant = re.search(
        r"(?:Perhaps you meant|similar to)[^\n]*\n\s*(--[\w.-]+)", plain.translate(_FRAME)
    )
    return message.rstrip(".") + "." + (f" Did you mean {meant[1]}?" if meant else "")


_RULE = re.compile(r"^ *(?:╭.*╮|╰.*╯|│? *[─-]{3,} *│?) *$", re.MULTILINE)
_FRAME = {ord(mark): " " for mark in "│╭╮╰╯"}
