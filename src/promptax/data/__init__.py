"""Data: sources, streams of tasks, loaders, augmentation on the device.

The names below are imported at their first use: listing data sets, for example, does not need JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptax.data.adapters import from_huggingface as from_huggingface
    from promptax.data.adapters import from_torchvision as from_torchvision
    from promptax.data.augment import prepare_eval as prepare_eval
    from promptax.data.augment import prepare_train as prepare_train
    from promptax.data.benchmark import BENCHMARKS as BENCHMARKS
    from promptax.data.benchmark import Benchmark as Benchmark
    from promptax.data.bundled import BUNDLED_SETS as BUNDLED_SETS
    from promptax.data.bundled import bundled_set as bundled_set
    from promptax.data.bundled import glyph_domains as glyph_domains
    from promptax.data.bundled import split_fashion_mnist as split_fashion_mnist
    from promptax.data.bundled import split_glyphs as split_glyphs
    from promptax.data.class_order import Shuffled as Shuffled
    from promptax.data.dataset import Dataset as Dataset
    from promptax.data.dataset import Part as Part
    from promptax.data.gaussian import gaussian_schedule as gaussian_schedule
    from promptax.data.loader import TestBatches as TestBatches
    from promptax.data.loader import TrainBatches as TrainBatches
    from promptax.data.loader import read_ahead as read_ahead
    from promptax.data.location import open_dataset as open_dataset
    from promptax.data.location import prepared_names as prepared_names
    from promptax.data.own import own_set as own_set
    from promptax.data.sequence import dataset_sequence as dataset_sequence
    from promptax.data.source import ArraySource as ArraySource
    from promptax.data.source import Source as Source
    from promptax.data.source import read_arrays as read_arrays
    from promptax.data.stream import Split as Split
    from promptax.data.stream import TaskStream as TaskStream
    from promptax.data.stream import class_incremental as class_incremental
    from promptax.data.stream import domain_incremental as domain_incremental

_HOMES = {
    **dict.fromkeys(("from_huggingface", "from_torchvision"), "adapters"),
    **dict.fromkeys(
        (
            "prepare_eval",
            "prepare_train",
        ),
        "augment",
    ),
    **dict.fromkeys(
        (
            "BENCHMARKS",
            "Benchmark",
        ),
        "benchmark",
    ),
    **dict.fromkeys(
        (
            "BUNDLED_SETS",
            "bundled_set",
            "glyph_domains",
            "split_fashion_mnist",
            "split_glyphs",
        ),
        "bundled",
    ),
    **dict.fromkeys(("Shuffled",), "class_order"),
    **dict.fromkeys(
        (
            "Dataset",
            "Part",
        ),
        "dataset",
    ),
    **dict.fromkeys(("gaussian_schedule",), "gaussian"),
    **dict.fromkeys(
        (
            "TestBatches",
            "TrainBatches",
            "read_ahead",
        ),
        "loader",
    ),
    **dict.fromkeys(
        (
            "open_dataset",
            "prepared_names",
        ),
        "location",
    ),
    **dict.fromkeys(("own_set",), "own"),
    **dict.fromkeys(("dataset_sequence",), "sequence"),
    **dict.fromkeys(
        (
            "ArraySource",
            "Source",
            "read_arrays",
        ),
        "source",
    ),
    **dict.fromkeys(
        (
            "Split",
            "TaskStream",
            "class_incremental",
            "domain_incremental",
        ),
        "stream",
    ),
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


# Type checkers see the imports above: with this function, they would take any misspelt name too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'promptax.data' has no attribute '{name}'")
        from promptax.core.described import document_fields

        value = getattr(importlib.import_module(f"promptax.data.{_HOMES[name]}"), name)
        document_fields(value)
        return value


def __dir__() -> list[str]:
    return __all__
