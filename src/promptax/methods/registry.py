"""Methods by name: those of the package by their file, and a user's own by FILE:CLASS.

`methods/l2p.py` defines one method, so its name is `l2p`. A new file in the folder needs no entry
in any table. A method of a user's own is named `path/to/file.py:Class`; its code runs only if the
user names it, never because a run folder mentions it.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

import promptax.methods
from promptax.core.errors import UserError, unknown
from promptax.methods.base import AbstractMethod

NOT_METHODS = frozenset({"base", "components", "registry", "rehearsal"})
"""Modules of the package that define no method of their own."""

_own_methods: dict[str, type[AbstractMethod]] = {}
"""Methods of users' files that were loaded in this process, by FILE:CLASS without the folder."""

_names_in_runs: dict[type[AbstractMethod], str] = {}
"""Names under which runs that were opened with a given class know it."""


@functools.cache
def builtin_methods() -> Mapping[str, type[AbstractMethod]]:
    """The methods of the package by name, in alphabetical order.

    Raises:
        UserError: A file of the package defines no method, or several.
    """
    names = [module.name for module in pkgutil.iter_modules(promptax.methods.__path__)]
    modules = {
        name: importlib.import_module(f"promptax.methods.{name}")
        for name in sorted(set(names) - NOT_METHODS)
    }
    return MappingProxyType({name: _only_method(name, mod) for name, mod in modules.items()})


def _only_method(name: str, module: ModuleType) -> type[AbstractMethod]:
    found = [
        kind
        for kind in vars(module).values()
        if is_method(kind) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        defined = ", ".join(kind.__name__ for kind in found) or "none"
        raise UserError(
            f"methods/{name}.py should define exactly one method, but defines {defined}: "
            "move what is shared to methods/components."
        )
    return found[0]


def is_method(value: object) -> bool:
    """Whether a value is a method class that can be instantiated."""
    is_class = isinstance(value, type) and issubclass(value, AbstractMethod)
    return is_class and not inspect.isabstract(value)


def method_class(name: str) -> type[AbstractMethod]:
    """The class of a method by its name, or by FILE:CLASS if `load_method` has loaded it.

    Raises:
        UserError: There is no such method, or it is a user's own that was not loaded.
    """
    if name in _own_methods:
        return _own_methods[name]
    if ".py:" in name:
        raise UserError(
            f"the method '{name}' is not part of promptax, and its code only runs if you name it: "
            f"add `--method path/to/{name}` (in Python: `promptax.load(run, method=CLASS)`)."
        )
    if name not in builtin_methods():
        raise unknown("method", name, builtin_methods())
    return builtin_methods()[name]


def method_name(method: AbstractMethod) -> str:
    """The name under which `method_class` finds a method.

    A class that was never registered, such as one defined in a notebook, goes by its class name.
    """
    if type(method) in _names_in_runs:
        return _names_in_runs[type(method)]
    for known in (builtin_methods(), _own_methods):
        for name, kind in known.items():
            if type(method) is kind:
                return name
    return type(method).__name__


def class_for_run(name: str, given: type[AbstractMethod] | None) -> type[AbstractMethod]:
    """The class of a run's method.

    Args:
        name: The name of the method in the run's config.
        given: The class that the user gives for it, which may come from another file or from a
            notebook; None to find it by its name.

    Raises:
        UserError: The name is unknown or is that of a user's method that was not given, or a class
            was given that has another name.
    """
    if given is None or builtin_methods().get(name) is given:
        return method_class(name)
    if name in builtin_methods() or name.rpartition(":")[2] != given.__name__:
        raise UserError(
            f"the run was trained with the method '{name}', but {given.__name__} was given for it."
        )
    # The run goes on to be compared with its config and checkpoints, which have this name.
    _names_in_runs[given] = name
    return given


def load_method(given: str) -> str:
    """Load a user's own method from `path/to/file.py:Class`, and return its name.

    Args:
        given: The path of a Python file and the name of a class in it. A plain name of a method of
            the package is returned as it is.

    Raises:
        UserError: The file does not exist or cannot be run, has no such class, or the class is
            not a method; or another file with a method of the same name was loaded before.
    """
    path_text, colon, class_name = given.rpartition(":")
    if not colon and given.endswith(".py"):
        raise _without_class(Path(given))
    if not colon or not path_text.endswith(".py"):
        method_class(given)  # raises for an unknown name
        return given
    path = Path(path_text)
    module = _run_file(path)
    kind = getattr(module, class_name, None)
    if kind is None:
        found = _methods_in(module)
        hint = f" It defines {', '.join(found)}." if found else ""
        raise UserError(f"'{path}' has no class '{class_name}'.{hint}")
    if not isinstance(kind, type) or not issubclass(kind, AbstractMethod):
        raise UserError(
            f"'{class_name}' in '{path}' is not a method: it has to be a subclass of "
            "promptax.AbstractMethod."
        )
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise UserError(f"'{class_name}' in '{path}' does not define {missing}.")
    if any(field.name == "name" for field in dataclasses.fields(kind)):
        raise UserError(
            f"'{class_name}' in '{path}' has a field called `name`, which is where a run's config "
            "keeps the name of its method: call the field something else."
        )
    name = f"{path.name}:{class_name}"
    earlier = _own_methods.get(name)
    # A file is run once, so its classes are the same objects whenever it is named again.
    if earlier is not None and earlier is not kind:
        raise UserError(
            f"two methods are called {name}: the one in '{inspect.getfile(earlier)}' was loaded "
            "before. Rename one of the files or classes."
        )
    _own_methods[name] = kind
    return name


def _methods_in(module: ModuleType) -> list[str]:
    """The names of the methods that a user's file defines; what it imports is not its own."""
    methods = {name: kind for name, kind in vars(module).items() if is_method(kind)}
    return [name for name, kind in methods.items() if kind.__module__ == module.__name__]


def _without_class(path: Path) -> UserError:
    """The error for a file that is named without one of its classes."""
    found = _methods_in(_run_file(path))
    if not found:
        return UserError(
            f"'{path}' defines no method: it needs a subclass of promptax.AbstractMethod."
        )
    choices = " or ".join(f"{path}:{name}" for name in found)
    return UserError(f"say which class of '{path}' is the method: {choices}.")


def named_class(given: str | None) -> type[AbstractMethod] | None:
    """The class that a user names on the command line, loaded from its file; None if none is.

    Raises:
        UserError: As `load_method` and `method_class` do.
    """
    return None if given is None else method_class(load_method(given))


def _run_file(path: Path) -> ModuleType:
    """Import a Python file that is not part of a package."""
    if not path.is_file():
        raise UserError(f"the method file '{path}' does not exist.")
    resolved = path.resolve()
    name = f"promptax_method_{resolved.stem}_{abs(hash(resolved))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        # It is the user's code, which may raise anything: say where instead of a traceback of ours.
        del sys.modules[name]
        line = _line_in(resolved, error)
        raise UserError(
            f"the method file '{path}' cannot be run: {type(error).__name__}{line}: {error}"
        ) from error
    return module


def _line_in(path: Path, error: Exception) -> str:
    """Where in a file an error was raised, for the message."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = []
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            lines.append(traceback.tb_lineno)
        traceback = traceback.tb_next
    return f" in line {lines[-1]}" if lines else ""
