"""The streams that come with the package: nothing to download."""

from collections.abc import Sequence
from importlib import resources

import numpy as np

from promptax.data.source import ArraySource, read_arrays
from promptax.data.stream import TaskStream, class_incremental

ClassOrder = Sequence[int] | int | None
"""The order itself, a seed to draw it from, or ascending."""


def split_fashion_mnist(class_order: ClassOrder = None) -> TaskStream:
    """Fashion-MNIST (Xiao et al., 2017) as 5 tasks of 2 classes: 500 training and 100 test
    images of each class, 28x28 grey, the first of each in the original files."""
    return _class_incremental("fashion_mnist.npz", "split-fashion-mnist", 5, class_order)


STREAMS = {"split-fashion-mnist": split_fashion_mnist}
"""By the name that the command line knows them under."""


def _class_incremental(file: str, name: str, num_tasks: int, class_order: ClassOrder) -> TaskStream:
    arrays = read_arrays(str(resources.files("promptax") / "box" / file))
    train, test = (
        ArraySource(arrays[f"{part}_images"], arrays[f"{part}_labels"], name)
        for part in ("train", "test")
    )
    names = tuple(np.asarray(arrays["class_names"]).tolist())
    return class_incremental(
        train, test, num_tasks=num_tasks, class_order=class_order, class_names=names, name=name
    )
