"""Objects that show what they are in a few lines, in a terminal and in a notebook.

The `repr` of a dataclass shows the values of all its fields. For a stream these would be the pixels
of all its images.
"""

import ast
import dataclasses
import functools
import html
import inspect
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

Facts = Iterator[tuple[str, str]]
"""Names and values, as a user reads them."""
_MOST_NAMES = 6
"""Names of tasks or classes that are spelled out."""


class Described(ABC):
    """Shows the facts that a subclass gives, as text and as an HTML table."""

    @abstractmethod
    def _facts(self) -> Facts:
        """The facts to show, the most important first."""

    def __repr__(self) -> str:
        facts = list(self._facts())
        width = max(len(name) for name, _ in facts)
        lines = [f"  {name:<{width}}  {value}" for name, value in facts]
        return "\n".join([type(self).__name__, *lines])

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts()
        ]
        caption = f"<caption>{type(self).__name__}</caption>"
        return f"<table>{caption}{''.join(rows)}</table>"


def some(names: tuple[str, ...]) -> str:
    """The first of some names, and how many more there are."""
    rest = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {rest} more" if rest > 0 else shown


def in_percent(share: float | None) -> str:
    """A share as a percentage, or a dash if there is none."""
    return "-" if share is None else f"{100 * share:.2f} %"


def document_fields(*kinds: Any) -> None:
    """Add the documentation of the fields of dataclasses to the docstrings that `help` shows.

    Fields are documented by the string below each of them, which tools read from the source and
    `help` does not. Whatever is no dataclass of this package is left alone.
    """
    for kind in kinds:
        is_ours = isinstance(kind, type) and kind.__module__.startswith("promptax.")
        doc = inspect.getdoc(kind) or ""
        if not is_ours or not dataclasses.is_dataclass(kind) or "\nAttributes:\n" in doc:
            continue
        fields = _field_docs(kind.__module__).get(getattr(kind, "__qualname__", ""))
        if fields:
            # The lines of a text below the first are indented once more, as in any such section.
            lines = [f"    {name}: " + text.replace("\n", "\n        ") for name, text in fields]
            kind.__doc__ = "\n".join([doc, "", "Attributes:", *lines])


@functools.cache
def _field_docs(module: str) -> dict[str, list[tuple[str, str]]]:
    """For each class of a module the names of its own fields, and the strings below them."""
    source = inspect.getsource(sys.modules[module])
    found = {}
    for definition in ast.parse(source).body:
        if isinstance(definition, ast.ClassDef):
            pairs = itertools.pairwise(definition.body)
            found[definition.name] = [doc for pair in pairs if (doc := _documented(*pair))]
    return found


def _documented(field: ast.stmt, below: ast.stmt) -> tuple[str, str] | None:
    """The name of a field and the string below it, if the statements are these."""
    if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
        return None
    constant = below.value if isinstance(below, ast.Expr) else None
    if not isinstance(constant, ast.Constant) or not isinstance(constant.value, str):
        return None
    return field.target.id, inspect.cleandoc(constant.value)
