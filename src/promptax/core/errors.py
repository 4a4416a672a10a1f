"""The one exception for a user's mistake: the command line prints it without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was expected, what came and what to do, in one or two lines."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not among `known`, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}Known: {', '.join(known)}.")
