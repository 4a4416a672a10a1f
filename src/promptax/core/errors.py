"""The exception for mistakes of the user: the command line prints it without a traceback."""

import difflib
from collections.abc import Iterable

_SIMILAR = 0.4  # share of matching characters from which a name is suggested; difflib's own is 0.6


class UserError(ValueError):
    """A mistake of the user's.

    The message says in one or two lines what was expected, what was found, and what to do.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make an error for an unknown name, which suggests the most similar known one.

    Args:
        kind: what is named, such as `"method"`.
        name: the unknown name.
        known: all names that are known.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=_SIMILAR)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}Known: {', '.join(known)}.")
