"""The folders of data sets and of compiled code.

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
"""Folder of downloaded files in the data folder."""
COMPILED = "compiled"
"""Folder of compiled code in the user's cache, which is also the data folder by default."""


def data_dir(given: Path | None = None) -> Path:
    """The folder of all data sets: `given`, or `PROMPTAX_DATA`, or one in the user's cache.

    An empty `PROMPTAX_DATA` is ignored. Raises `UserError` if the path is not a folder.
    """
    chosen = given or os.environ.get("PROMPTAX_DATA") or cache_dir()
    folder = Path(chosen).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the data folder '{folder}' is a file: give a folder with Data(dir=...).")
    return folder


def downloads(name: str, given: Path | None = None) -> Path:
    """The folder that the files of a set are fetched into."""
    return data_dir(given) / DOWNLOADS / check_name(name)


def prepared(name: str, given: Path | None = None) -> Path:
    """The folder that a set is prepared in."""
    return data_dir(given) / check_name(name)


def prepared_names(given: Path | None = None) -> list[str]:
    """The sets that are prepared, in alphabetical order."""
    return sorted(meta.parent.name for meta in data_dir(given).glob("*/meta.json"))


def own_names(given: Path | None = None) -> list[str]:
    """The prepared sets that are not in the catalog."""
    return [name for name in prepared_names(given) if name not in CATALOG]


def half_prepared(name: str, given: Path | None = None) -> bool:
    """Whether the preparation of a set was begun and is not complete."""
    folder = prepared(name, given)
    return not folder.is_dir() and folder.with_name(f"{name}.partial").is_dir()


def open_dataset(name: str, given: Path | None = None) -> Dataset:
    """Open a prepared set by its name.

    Raises `UserError` for an unknown name, for a set that is not prepared (and says which command
    prepares it), and for a damaged one.
    """
    folder = prepared(name, given)
    if folder.is_dir() or half_prepared(name, given):
        return Dataset.open(folder)
    if name not in CATALOG:
        raise unknown("data set", name, [*CATALOG, *own_names(given)])
    if not CATALOG[name].files:  # the user has to download them
        command = ["prepare", name, "PATH"]
    elif downloads(name, given).is_dir():
        command = ["prepare", name]
    else:
        command = ["fetch", name, "--prepare"]
    command = " ".join(["promptax data", *command, *data_dir_flags(given)])
    raise UserError(f"data set '{name}' is not prepared in '{folder.parent}': run `{command}`.")


def data_dir_flags(given: Path | None) -> list[str]:
    """The command-line flags that give another command the same data folder."""
    return ["--data-dir", str(given)] if given else []


def check_name(name: str) -> str:
    """Return a name of a data set. Raises `UserError` if it cannot be the name of a folder."""
    taken = (DOWNLOADS, COMPILED)
    if not re.fullmatch(r"\w[\w.+-]*", name) or name in taken or name.endswith(".partial"):
        raise UserError(
            f"'{name}' cannot be the name of a data set: use letters, digits, '-', '_' and '.', "
            f"and neither {' nor '.join(map(repr, taken))} nor an end in '.partial'."
        )
    return name


def cache_dir() -> Path:
    """The folder of promptax in the user's cache."""
    return _cache() / "promptax"


def compiled() -> Path:
    """The folder in which XLA keeps compiled code between runs."""
    return cache_dir().expanduser() / COMPILED


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Caches")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
