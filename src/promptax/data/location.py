"""Where downloaded and prepared sets are."""

import os
from pathlib import Path

from promptax.data.dataset import Dataset


def data_dir(given: Path | None = None) -> Path:
    """The given folder, `PROMPTAX_DATA`, or the user's cache."""
    return given or Path(os.environ.get("PROMPTAX_DATA") or Path.home() / ".cache" / "promptax")


def prepared(given: Path | None = None) -> list[str]:
    """Names of the sets that are prepared."""
    return sorted(meta.parent.name for meta in data_dir(given).glob("*/meta.json"))


def open_dataset(name: str, given: Path | None = None) -> Dataset:
    """A prepared set."""
    return Dataset.open(data_dir(given) / name)
