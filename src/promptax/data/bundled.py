"""The sets and streams that come with the package: nothing to download."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from promptax.data.benchmark import BENCHMARKS, ClassOrder
from promptax.data.dataset import Dataset, Part
from promptax.data.source import ArraySource, read_arrays
from promptax.data.stream import TaskStream

BUNDLED_SETS: Mapping[str, str] = {
    "small-fashion-mnist": "fashion_mnist.npz",
    "glyphs": "split_glyphs.npz",
    "glyph-domains": "glyph_domains.npz",
}
"""Files by the name of the set."""


def bundled_set(name: str) -> Dataset:
    """A set of the package, in memory."""
    folder = Path(str(resources.files("promptax") / "data" / "bundled"))
    arrays = read_arrays(folder / BUNDLED_SETS[name])
    train, test = (_part(arrays, part) for part in ("train", "test"))
    names, groups = (
        tuple(arrays[key].tolist()) if key in arrays else ()
        for key in ("class_names", "domain_names")
    )
    return Dataset(name, folder, train, test, names, groups, "")


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
    """20 glyphs in 5 styles, one after another: domain-incremental, all classes in each."""
    return _stream("glyph-domains", None)


def _stream(name: str, order: ClassOrder) -> TaskStream:
    return replace(BENCHMARKS[name], order=order).stream(name, bundled_set)


def _part(arrays: Mapping[str, np.ndarray], name: str) -> Part:
    source = ArraySource(arrays[f"{name}_images"], arrays[f"{name}_labels"])
    groups = arrays.get(f"{name}_domains", np.zeros(len(source.labels)))
    return Part(source.images, source.labels, groups.astype(np.int32), [""] * len(groups))
