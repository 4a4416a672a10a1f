"""tyro, with its framed error messages cut to the one line that a user needs."""

import contextlib
import difflib
import io
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tyro

from promptax.cli.help import LAID_OUT_FOR, laid_out
from promptax.cli.output import plain_output
from promptax.core.errors import UserError

NARROWEST = 40
"""Columns that the help is laid out for, however narrow the terminal is."""


def parse(
    kind: Any,
    argv: Sequence[str],
    *,
    prog: str,
    default: Any = None,
    common: Collection[str] = (),
    order: Sequence[str] = (),
) -> Any:
    """Parse flags into a dataclass.

    Args:
        kind: the dataclass, or a union of several of which the first argument chooses one.
        argv: the arguments.
        prog: the command as the user types it, for the help.
        default: an instance of `kind` whose values are the defaults.
        common: flags that `--help` shows, while `--help-all` shows all; all of them if empty.
        order: titles of the groups of flags that the help shows first.

    Raises:
        UserError: the arguments do not parse.
        SystemExit: the arguments ask for help, which is printed.
    """
    captured = io.StringIO()
    arguments = {} if default is None else {"default": default}
    asked = set(argv)
    _widen_terminal()
    width = shutil.get_terminal_size().columns
    wants_help = bool(_HELP & asked)
    # In an encoding that has the characters of frames, by which the help is taken apart.
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8") if wants_help else plain_output()
    argv = ["--help" if word in _HELP else word for word in argv]
    try:
        with (
            contextlib.redirect_stderr(captured),
            contextlib.redirect_stdout(printed),
            _columns(LAID_OUT_FOR if wants_help else width),
        ):
            return tyro.cli(kind, args=argv, prog=prog, **arguments)
    except SystemExit as stop:
        if not stop.code:
            if wants_help:
                printed.seek(0)
                text = _uncoloured(printed.read())
                shown = () if "--help-all" in asked else common
                print(laid_out(text, width=width, common=shown, order=order))
            raise
        message = _condense(captured.getvalue())
    if (unknown := re.match(r"Unrecognized options: ([^\s,]+)", message)) and "mean" not in message:
        message += _suggestion(unknown[1].rstrip("."), _help_of(kind, prog, arguments))
    raise UserError(f"{message} See {prog} --help.")


def _help_of(kind: Any, prog: str, arguments: dict[str, Any]) -> str:
    """The help that tyro would print."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog, **arguments)
    return _uncoloured(printed.getvalue())


def _suggestion(word: str, text: str) -> str:
    """The flag or command of a help text that a word may stand for, as a question; "" if none.

    `--lr` are the initials of `--learning-rate`, and `-f` is the beginning of `--format`.
    """
    if not word.startswith("-"):
        known = {name for group in re.findall(r"\{([\w,-]+)\}", text) for name in group.split(",")}
        near = difflib.get_close_matches(word, sorted(known), n=1)
        return f" Did you mean {near[0]}?" if near else ""
    flags = sorted(set(re.findall(r"--[\w.-]+", text)))
    letters = word.lstrip("-")
    initials = [flag for flag in flags if "".join(re.findall(r"(?<=[-.])\w", flag)) == letters]
    begun = [flag for flag in flags if flag.startswith(f"--{letters}")]
    ends = [flag for flag in flags if flag.endswith((f".{letters}", f"-{letters}"))]
    near = initials + begun + ends + difflib.get_close_matches(word, flags, n=1)
    return f" Did you mean {near[0]}?" if near else ""


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    """Let tyro believe that the terminal has so many columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


_HELP = {"-h", "--help", "--help-all"}


def _widen_terminal() -> None:
    """Let tyro believe that the terminal has room: with one or two columns, it never finishes."""
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
    plain = _uncoloured(framed)
    # The title comes before the first rule, inside the frame or, without one, above the message.
    paragraphs = _RULE.split(plain)[1:]
    message = " ".join(paragraphs[0].translate(_FRAME).split()) if paragraphs else ""
    message = message or "the arguments do not parse"
    # Our own checks run while tyro builds a dataclass, whose name would not help the user.
    message = re.sub(r"^Error parsing (?!--)\S+: ", "", message).replace(". (required)", "")
    return message.rstrip(".") + "." + _nearest_of_tyro(message, plain.translate(_FRAME))


def _nearest_of_tyro(message: str, text: str) -> str:
    """The flag most like the unknown one among those that tyro proposes, as a question."""
    unknown = re.search(r"--[\w.-]+", message)
    proposals = re.search(r"(?:Perhaps you meant|similar to)(.*)", text, re.DOTALL)
    if not unknown or not proposals:
        return ""
    flags = re.findall(r"\n\s*(--[\w.-]+)", proposals[1])
    if not flags:
        return ""
    likeness = lambda flag: difflib.SequenceMatcher(None, unknown[0], flag).ratio()
    return f" Did you mean {max(flags, key=likeness)}?"


_RULE = re.compile(r"^ *(?:╭.*╮|╰.*╯|│? *[─-]{3,} *│?) *$", re.MULTILINE)
_FRAME = {ord(mark): " " for mark in "│╭╮╰╯"}
