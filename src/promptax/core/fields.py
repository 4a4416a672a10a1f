"""Checks that the fields of a settings class hold what their annotations say.

The command line and config files are checked while they are read. In Python nothing else stops
`Optimizer(name="lion")`, and training would silently go on with something else.
"""

import difflib
import functools
import numbers
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from promptax.core.errors import UserError

_SIMILAR = 0.4
"""Share of matching characters from which a choice is suggested."""
_KINDS: Mapping[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}
"""The values that a field of a plain type takes, and their name in errors."""


def check_fields(settings: Any) -> None:
    """Check the type of every field of a dataclass, and the choices of those with a `Literal`.

    Raises:
        UserError: A field holds something else; the field, what came and what was expected are
            named, and of choices the nearest.
    """
    _check(settings, only_choices=False)


def check_choices(settings: Any) -> None:
    """Check the choices of those fields of a dataclass that have a `Literal` type.

    Raises:
        UserError: A field holds something else; the nearest choice is named.
    """
    _check(settings, only_choices=True)


def _check(settings: Any, *, only_choices: bool) -> None:
    for name, hint in _hints(type(settings)).items():
        has_choices = any(get_origin(kind) is Literal for kind in _alternatives(hint))
        if only_choices and not has_choices:
            continue
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise _misfit(f"{type(settings).__name__}.{name}", value, hint)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass; none if a user's annotations cannot be evaluated."""
    try:
        hints = get_type_hints(kind)
    except (NameError, TypeError):
        return {}
    fields = getattr(kind, "__dataclass_fields__", {})
    return {name: hints[name] for name in fields if name in hints}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and _members_fit(value, get_args(hint))
    if hint in _KINDS:
        # True is a whole number in Python, and hardly ever meant as one.
        is_boolean = isinstance(value, bool)
        return isinstance(value, _KINDS[hint][0]) and is_boolean == (hint is bool)
    return not isinstance(hint, type) or origin is not None or isinstance(value, hint)


def _members_fit(value: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return all(_fits(member, kinds[0]) for member in value)
    same_length = len(value) == len(kinds)
    return same_length and all(map(_fits, value, kinds))


def _misfit(name: str, value: Any, hint: Any) -> UserError:
    choices = [
        choice
        for kind in _alternatives(hint)
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]
    if not choices:
        expected = " or ".join(map(_described, _alternatives(hint)))
        return UserError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}.")
    texts = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(str(value), texts, n=1, cutoff=_SIMILAR)
    hint_text = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(repr(choice) for choice in choices)
    return UserError(f"{name} is {value!r}: {hint_text}Expected one of {known}.")


def _described(hint: Any) -> str:
    if hint in _KINDS:
        return _KINDS[hint][1]
    if hint is type(None):
        return "None"
    if get_origin(hint) is tuple:
        kinds = [kind for kind in get_args(hint) if kind is not Ellipsis]
        members = {_described(kind).removeprefix("a ").removeprefix("whole ") for kind in kinds}
        return f"a tuple of {' and '.join(sorted(members))}s"
    name = getattr(hint, "__name__", str(hint))
    return f"an instance of {name}"
