"""Settings to JSON and back, without taking one kind of value for another."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import cattrs

from promptax.core.errors import UserError, unknown

CONVERTER = cattrs.Converter(forbid_extra_keys=True)
CONVERTER.register_unstructure_hook(Path, lambda path: str(path.expanduser().absolute()))
CONVERTER.register_structure_hook(Path, lambda value, _: Path(value))


def _choice(value: Any, kind: Any) -> Any:
    """A value of a `Literal` type; cattrs would not name the nearest choice."""
    choices = get_args(kind)
    if value not in choices:
        raise unknown("choice", str(value), map(str, choices))
    return value


CONVERTER.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _choice)


def _register_plain(kind: type, accepts: Callable[[Any], bool], expected: str) -> None:
    """Read values of a plain type as they are: `int` would take 3.7 for 3, and `bool` "no" for
    True."""

    def structure(value: Any, _: type) -> Any:
        if not accepts(value):
            raise UserError(f"{value!r} is not {expected}")
        return kind(value)

    CONVERTER.register_structure_hook(kind, structure)


def _is_number(value: Any) -> bool:
    """Whether a value is a number; YAML takes one without a point, such as 1e-3, for a text."""
    if isinstance(value, str):
        return re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


_register_plain(bool, lambda value: isinstance(value, bool), "true or false")
_register_plain(int, lambda value: type(value) is int, "a whole number")
_register_plain(float, _is_number, "a number")
_register_plain(str, lambda value: isinstance(value, str), "a text")


def _tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    """A list of values; cattrs would take a text for the list of its characters."""
    if not isinstance(value, list | tuple):
        raise UserError(f"{value!r} is not a list")
    members = get_args(kind)
    if members[-1] is Ellipsis:
        members = members[:1] * len(value)
    if len(value) != len(members):
        raise UserError(f"{value!r} has not the expected {len(members)} values")
    return tuple(map(CONVERTER.structure, value, members))


CONVERTER.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _tuple)


def structured(name: str, value: Any, kind: Any) -> Any:
    """Read a setting, or a group of them, by its name. Raises as cattrs does, or `UserError`."""
    try:
        return CONVERTER.structure(value, kind)
    except UserError as error:
        raise UserError(f"the config cannot be read: {error} @ $.{name}.") from None


def check_json(name: str, value: Any) -> None:
    """Raise `UserError` for a setting that `config.json` cannot hold, such as a function."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{name} is a {type(value).__name__}, which the config of a run cannot hold: expected "
            "numbers, strings, None, or tuples and dataclasses of these."
        ) from None


def reason_of(error: Exception) -> str:
    """Why settings could not be read, and where in them."""
    if isinstance(error, cattrs.BaseValidationError):
        # Our own checks say more than that a value is invalid.
        explain = lambda cause, kind: (
            str(cause) if isinstance(cause, UserError) else cattrs.v.format_exception(cause, kind)
        )
        return cattrs.transform_error(error, format_exception=explain)[0]
    return f"{type(error).__name__} {error}"
