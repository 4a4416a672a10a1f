"""Where data sets are kept.

A set is fetched to `<data dir>/downloads/NAME/` and prepared in `<data dir>/NAME/`.
"""

import os
import re
import sys
from pathlib import Path

from promptax.core.errors import UserError, unknown
from promptax.data.catalog import CATALOG
from promptax.data.dataset import Dataset

DOWNLOADS = "downloads"
COMPILED = "compiled"


def data_dir(given: Path | None = None) -> Path:
    """The folder of all data sets: `given`, or `PROMPTAX_DATA`, or one in the user's cache.

    An empty `PROMPTAX_DATA` counts as none. Raises `UserError` where the path is no folder.
    """
    chosen = given or os.environ.get("PROMPTAX_DATA") or cache_dir()
    folder = Path(chosen).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the data folder '{folder}' is a file: give a folder with --data-dir.")
    return folder


def downloads(name: str, given: Path | None = None) -> Path:
    """Where the files of a set are fetched to."""
    return data_dir(given) / DOWNLOADS / check_name(name)


def prepared(name: str, given: Path | None = None) -> Path:
    """Where a set is prepared."""
    return data_dir(given) / check_name(name)


def prepared_names(given: Path | None = None) -> list[str]:
    """The sets that are prepared, in alphabetical order."""
    return sorted(meta.parent.name for meta in data_dir(given).glob("*/meta.json"))


def own_names(given: Path | None = None) -> list[str]:
    """The prepared sets that are not in the catalog."""
    return [name for name in prepared_names(given) if name not in CATALOG]


def half_prepared(name: str, given: Path | None = None) -> bool:
    """Whether somebody began to prepare a set, and it is not complete yet."""
    folder = prepared(name, given)
    return not folder.is_dir() and folder.with_name(f"{name}.partial").is_dir()


def open_dataset(name: str, given: Path | None = None) -> Dataset:
    """A prepared set by its name.

    Raises `UserError` that says which command prepares it, and as `Dataset.open` does.
    """
    folder = prepared(name, given)
    if folder.is_dir() or half_prepared(name, given):
        return Dataset.open(folder)
    if name not in CATALOG:
        raise unknown("data set", name, [*CATALOG, *own_names(given)])
    fetched = not CATALOG[name].files or downloads(name, given).is_dir()
    command = f"prepare {name}" if fetched else f"fetch {name} --prepare"
    words = ["promptax data", command, *([] if CATALOG[name].files else ["PATH"]), *where(given)]
    raise UserError(
        f"data set '{name}' is not prepared in '{folder.parent}': run `{' '.join(words)}`."
    )


def where(given: Path | None) -> list[str]:
    """The arguments that name the same data folder to another command."""
    return ["--data-dir", str(given)] if given else []


def check_name(name: str) -> str:
    """The name, where it can be that of a folder. Raises `UserError` otherwise."""
    taken = (DOWNLOADS, COMPILED)
    if not re.fullmatch(r"\w[\w.+-]*", name) or name in taken or name.endswith(".partial"):
        raise UserError(
            f"'{name}' is no name for a data set: use letters, digits, '-', '_' and '.', "
            f"and neither {' nor '.join(map(repr, taken))} nor an end in '.partial'."
        )
    return name


def cache_dir() -> Path:
    """The folder of this program in the user's cache."""
    return _cache() / "promptax"


def compiled() -> Path:
    """Where compiled steps are kept."""
    return cache_dir().expanduser() / COMPILED


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Caches")
    variable, default = {"win32": ("LOCALAPPDATA", "~/AppData/Local")}.get(
        sys.platform, ("XDG_CACHE_HOME", "~/.cache")
    )
    return Path(os.environ.get(variable) or default)
