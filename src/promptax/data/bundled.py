"""Data sets and streams that are bundled with the package: there is nothing to download."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from promptax.core.errors import unknown
from promptax.data.benchmark import BENCHMARKS
from promptax.data.class_order import ClassOrder
from promptax.data.dataset import Dataset, Part
from promptax.data.source import ArraySource, read_arrays
from promptax.data.stream import TaskStream

BUNDLED_SETS: Mapping[str, str] = {
    "small-fashion-mnist": "fashion_mnist.npz",
    "glyphs": "split_glyphs.npz",
    "glyph-domains": "glyph_domains.npz",
}
"""Files in the folder `bundled`, by the names of the data sets."""


def bundled_set(name: str) -> Dataset:
    """A bundled data set, in memory.

    `name` is one of `BUNDLED_SETS`; raises `UserError` if it is not.
    """
    if name not in BUNDLED_SETS:
        raise unknown("bundled data set", name, BUNDLED_SETS)
    folder = Path(str(resources.files("promptax") / "data" / "bundled"))
    arrays = read_arrays(folder / BUNDLED_SETS[name])
    domain_names = arrays["domain_names"].tolist() if "domain_names" in arrays else ()
    return Dataset(
        name=name,
        folder=folder,
        train=_part(arrays, "train"),
        test=_part(arrays, "test"),
        class_names=tuple(arrays["class_names"].tolist()),
        group_names=tuple(domain_names),
        sha256="",
    )


def split_fashion_mnist(class_order: ClassOrder = None) -> TaskStream:
    """Fashion-MNIST (Xiao et al., 2017) as 5 tasks of 2 classes: 500 training and 100 test
    images of each class, 28x28 grey, the first of each in the original files."""
    return _stream("split-fashion-mnist", class_order)


def split_glyphs(class_order: ClassOrder = None) -> TaskStream:
    """Glyphs of ten scripts as 10 tasks of 10 classes: the shape of Split CIFAR-100.

    100 training and 30 test images of each class, 32x32 grey, in fonts of their own; neither
    scripts nor fonts are among those that `glyph-vit` was trained on.
    """
    return _stream("split-glyphs", class_order)


def glyph_domains() -> TaskStream:
    """20 glyphs in 5 styles, one style after another: domain-incremental, with all classes in each
    task."""
    return _stream("glyph-domains", None)


def _stream(name: str, order: ClassOrder) -> TaskStream:
    return replace(BENCHMARKS[name], order=order).stream(name, bundled_set)


def _part(arrays: Mapping[str, np.ndarray], name: str) -> Part:
    source = ArraySource(arrays[f"{name}_images"], arrays[f"{name}_labels"])
    groups = arrays.get(f"{name}_domains", np.zeros(len(source.labels)))
    return Part(
        source.images, source.labels, groups.astype(np.int32), names=[""] * len(source.labels)
    )
