"""Decode a set once into memory-mapped files; `data/dataset.py` opens them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from promptax.data.dataset import Dataset
from promptax.data.formats.format import AbstractFormat


def prepare(
    form: AbstractFormat,
    path: Path,
    folder: Path,
    *,
    size: int | None = None,
    damaged: Literal["raise", "skip"] = "raise",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Decode the set at `path` into `folder`."""
    raise NotImplementedError
