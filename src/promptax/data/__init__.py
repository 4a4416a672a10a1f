"""Data: sources, streams of tasks, loaders, augmentation on the device.

The names below are imported at their first use: to list data sets takes no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptax.data.augment import prepare_eval as prepare_eval
    from promptax.data.augment import prepare_train as prepare_train
    from promptax.data.box import STREAMS as STREAMS
    from promptax.data.box import glyph_domains as glyph_domains
    from promptax.data.box import split_fashion_mnist as split_fashion_mnist
    from promptax.data.box import split_glyphs as split_glyphs
    from promptax.data.dataset import Dataset as Dataset
    from promptax.data.dataset import Part as Part
    from promptax.data.loader import TestBatches as TestBatches
    from promptax.data.loader import TrainBatches as TrainBatches
    from promptax.data.loader import read_ahead as read_ahead
    from promptax.data.source import ArraySource as ArraySource
    from promptax.data.source import Source as Source
    from promptax.data.source import read_arrays as read_arrays
    from promptax.data.stream import Split as Split
    from promptax.data.stream import TaskStream as TaskStream
    from promptax.data.stream import class_incremental as class_incremental
    from promptax.data.stream import domain_incremental as domain_incremental

_HOMES = {
    **dict.fromkeys(("prepare_eval", "prepare_train"), "augment"),
    **dict.fromkeys(("STREAMS", "glyph_domains", "split_fashion_mnist", "split_glyphs"), "box"),
    **dict.fromkeys(("Dataset", "Part"), "dataset"),
    **dict.fromkeys(("TestBatches", "TrainBatches", "read_ahead"), "loader"),
    **dict.fromkeys(("ArraySource", "Source", "read_arrays"), "source"),
    **dict.fromkeys(("Split", "TaskStream", "class_incremental", "domain_incremental"), "stream"),
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptax.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"promptax.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
