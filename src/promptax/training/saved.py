"""A learner in a file of its own: all that it needs to name the classes of images.

The file is a NumPy archive: the arrays, and the tree that they stand in as JSON. Reading it runs
no code that the file names. Only classes of this package are made from it, and those that the
caller gives.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptax.core.errors import UserError
from promptax.core.files import read_npz, replacing

FORMAT = "promptax learner 1"
"""The first entry of a file: the name and version of its layout."""
_TREE = "tree"
"""Name of the JSON in the archive; all other names are numbers of arrays."""
_PACKAGE = "promptax."


def save_tree(tree: Any, path: Path) -> None:
    """Write a tree of modules, dataclasses, containers, arrays and plain values to a file.

    Raises:
        UserError: Something in the tree cannot be saved; it is named.
    """
    arrays: dict[str, np.ndarray] = {}
    encoded = _encode(tree, type(tree).__name__, arrays)
    content = json.dumps({"format": FORMAT, "root": encoded})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **{_TREE: np.frombuffer(content.encode(), np.uint8), **arrays})


def check_savable(tree: Any) -> None:
    """Raise `UserError` if `save_tree` cannot write a tree, before there is anything to lose."""
    _encode(tree, type(tree).__name__, {})


def load_tree(path: Path, classes: Iterable[type] = ()) -> Any:
    """Read what `save_tree` wrote.

    Args:
        path: The file.
        classes: Classes outside of this package that may be in it.

    Raises:
        UserError: The file is missing, damaged or something else, or has a class in it that was
            not given.
    """
    arrays = read_npz(path, "learner")
    try:
        content = json.loads(arrays[_TREE].tobytes())
        is_ours = content["format"] == FORMAT
    except (LookupError, TypeError, ValueError):
        is_ours = False
        content = {}
    if not is_ours:
        raise UserError(f"'{path}' is not a learner that `learner.save` wrote.")
    given = {_name(kind): kind for kind in classes}
    try:
        return _decode(content["root"], arrays, lambda name: _class(name, given, path))
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{path}' is damaged, or was written by another version ({error!r})."
        ) from None


def _encode(value: Any, at: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        members = [_encode(each, f"{at}[{n}]", arrays) for n, each in enumerate(value)]
        return {"kind": type(value).__name__, "members": members}
    if isinstance(value, dict):
        members = [[key, _encode(each, f"{at}[{key!r}]", arrays)] for key, each in value.items()]
        return {"kind": "dict", "members": members}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, arrays)
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _encode(getattr(value, field.name), f"{at}.{field.name}", arrays)
            for field in dataclasses.fields(value)
        }
        return {"kind": "object", "class": _name(type(value)), "fields": fields}
    raise UserError(
        f"the learner cannot be saved: {at} is a {type(value).__name__}; expected a module, an "
        "array or a plain value."
    )


def _encode_array(value: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    number = str(len(arrays))
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        arrays[number] = np.asarray(jax.random.key_data(value))
        return {"kind": "key", "number": number}
    array = np.asarray(value)
    # NumPy's files do not know bfloat16, so its bits are written, and its name beside them.
    is_plain = array.dtype.kind in "biufc"
    arrays[number] = array if is_plain else array.view(np.uint16)
    on_device = isinstance(value, jax.Array)
    return {"kind": "array", "number": number, "dtype": str(array.dtype), "on_device": on_device}


def _decode(value: Any, arrays: Mapping[str, np.ndarray], find: Callable[[str], type]) -> Any:
    if not isinstance(value, dict):
        return value
    match value["kind"]:
        case "tuple" | "list" as kind:
            members = [_decode(each, arrays, find) for each in value["members"]]
            return tuple(members) if kind == "tuple" else members
        case "dict":
            return {key: _decode(each, arrays, find) for key, each in value["members"]}
        case "key":
            return jax.random.wrap_key_data(jnp.asarray(arrays[value["number"]]))
        case "array":
            array = arrays[value["number"]]
            dtype = jnp.dtype(value["dtype"])
            array = array if array.dtype == dtype else array.view(dtype)
            return jnp.asarray(array) if value["on_device"] else array
        case "object":
            kind = find(value["class"])
            fields = {name: _decode(each, arrays, find) for name, each in value["fields"].items()}
            expected = {field.name for field in dataclasses.fields(kind)}
            if set(fields) != expected:
                raise ValueError(f"{kind.__name__} has the fields {sorted(fields)}")
            # As a tree is put together again: the values were checked when they were made.
            made = object.__new__(kind)
            for name, field in fields.items():
                object.__setattr__(made, name, field)
            return made
        case unknown:
            raise ValueError(f"a value of kind {unknown}")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class(name: str, given: Mapping[str, type], path: Path) -> type:
    """A dataclass by its name: of this package, or one that the caller gives."""
    if name in given:
        return given[name]
    short = name.rpartition(".")[2]
    for kind in given.values():
        if not name.startswith(_PACKAGE) and kind.__qualname__ == short:
            return kind  # the same class, in a file or notebook of another name
    if not name.startswith(_PACKAGE):
        raise UserError(
            f"'{path}' has a {short} in it, which is not part of promptax: give its class, as in "
            f"px.load(path, method={short})."
        )
    module, _, attribute = name.rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"{name} is no module or settings class")
    return kind
