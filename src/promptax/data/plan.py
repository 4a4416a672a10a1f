"""The plan of a prepared set: everything that its files depend on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.core.settings import Interpolation
from promptax.core.text import printable
from promptax.data.dataset import PARTS, VERSION
from promptax.data.formats import FORMATS
from promptax.data.formats.format import AbstractFormat, Listed, Listing
from promptax.data.storage import fingerprint

SHOWN_CHARACTERS = 60
"""Most characters of a setting in an error message."""

Plan = dict[str, Any]

AGAIN = "Prepare it again with overwrite=True, or choose another name."
"""What to do where a folder holds another set. (The command line prints it as a flag.)"""


def make_plan(
    form: AbstractFormat,
    listing: Listing,
    size: int | None,
    *,
    keep_aspect: bool,
    interpolation: Interpolation,
) -> Plan:
    """Everything that a prepared set depends on, so that sets of the same plan are the same.

    Args:
        form: The format, with its options.
        listing: The examples.
        size: The side that images are resized to; None: as they are.
        keep_aspect: Whether they keep their aspect.
        interpolation: Of the resizing.
    """
    names = [listing.class_names, listing.group_names]
    examples = hashlib.sha256(json.dumps(names).encode())
    for name in PARTS:
        part: Listed = getattr(listing, name)
        examples.update(np.asarray(part.labels, "<i8").tobytes())
        examples.update(np.asarray([] if part.groups is None else part.groups, "<i8").tobytes())
        examples.update("\n".join(part.names).encode("utf-8", "surrogateescape"))
    options = {field.name: getattr(form, field.name) for field in dataclasses.fields(form)}  # pyright: ignore[reportArgumentType]
    plan = {
        "version": VERSION,
        "format": type(form).__name__,
        "options": {name: str(value) for name, value in options.items() if value is not None},
        "size": size,
        "examples": examples.hexdigest(),
        "files": [[file.name, fingerprint(file)] for file in listing.files],
    }
    # Only what differs from the default: sets that were prepared before keep their plan.
    plan |= {"keep_aspect": True} if keep_aspect else {}
    plan |= {"interpolation": interpolation} if interpolation != "bilinear" else {}
    return plan


def check_same(made_from: Any, plan: Plan, folder: Path, source: Path) -> None:
    """Check that a folder was made by a plan.

    Args:
        made_from: The plan that the folder records, which can be damaged.
        plan: The plan of what is asked for.
        folder: The folder.
        source: What the set is to be prepared from.

    Raises:
        UserError: The plans differ; the message says in what.
    """
    known = made_from if isinstance(made_from, dict) else {}
    if isinstance(known.get("options"), dict):
        # Plans used to have None where an option was not given, and lack options that came later.
        given = {name: value for name, value in known["options"].items() if value is not None}
        known = {**known, "options": given}
    if known != plan:
        raise UserError(f"'{folder}' {_difference(known, plan, source)}. {AGAIN}")


def _difference(known: Mapping[str, Any], plan: Plan, source: Path) -> str:
    """The first difference between two plans: the end of a sentence about the folder."""
    before = _settings(known)
    now = _settings(plan)
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            return f"was prepared with {name} {_short(before, name)}, and not {_short(now, name)}"
    if known.get("files") == plan["files"]:
        return f"was prepared from other images of '{source}'"
    files = [_file_names(recorded) for recorded in (known.get("files"), plan["files"])]
    if files[0] == files[1]:
        return f"was prepared from '{source}', whose files have changed since"
    return f"was prepared from {_shortened(files[0])}, and not from {_shortened(files[1])}"


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a plan, with the options of the format among them."""
    options = plan.get("options")
    general = {name: plan[name] for name in plan if name not in ("options", "examples", "files")}
    return general | (options if isinstance(options, dict) else {})


def _file_names(recorded: Any) -> str:
    """The names of the files of a plan, of which a damaged one can have anything in their place."""
    pairs = recorded if isinstance(recorded, list) else []
    return ", ".join(f"'{pair[0]}'" for pair in pairs if isinstance(pair, list) and pair)


def _short(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name, "the default")
    if name == "format":
        # A plan records the class; people know the names on the command line.
        named = [known for known, make in FORMATS.items() if type(make()).__name__ == value]
        value = " or ".join(named) or value
    return _shortened(value)


def _shortened(value: Any) -> str:
    text = printable(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
