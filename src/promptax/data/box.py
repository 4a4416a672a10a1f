"""The streams that come with the package: nothing to download."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import numpy as np

from promptax.data.source import ArraySource, read_arrays
from promptax.data.stream import TaskStream, class_incremental, domain_incremental
from promptax.errors import UserError

ClassOrder = Sequence[int] | int | None
"""The order itself, a seed to draw it from, or ascending."""


def split_fashion_mnist(class_order: ClassOrder = None) -> TaskStream:
    """Fashion-MNIST (Xiao et al., 2017) as 5 tasks of 2 classes: 500 training and 100 test
    images of each class, 28x28 grey, the first of each in the original files."""
    return _class_incremental("fashion_mnist.npz", "split-fashion-mnist", 5, class_order)


def split_glyphs(class_order: ClassOrder = None) -> TaskStream:
    """Glyphs of ten scripts as 10 tasks of 10 classes: the shape of Split CIFAR-100.

    100 training and 30 test images of each class, 32x32 grey, in fonts of their own; neither
    scripts nor fonts are among those that `glyph-vit` was trained on.
    """
    return _class_incremental("split_glyphs.npz", "split-glyphs", 10, class_order)


def glyph_domains(class_order: ClassOrder = None) -> TaskStream:
    """20 glyphs in 5 styles, one after another: domain-incremental, all classes in each.

    Raises `UserError` for a class order: there is none.
    """
    if class_order is not None:
        raise UserError("glyph-domains has all classes in every task, so they have no order.")
    arrays, train, test = _read("glyph_domains.npz")
    return domain_incremental(
        train,
        test,
        (arrays["train_domains"], arrays["test_domains"]),
        domain_names=arrays["domain_names"].tolist(),
        class_names=arrays["class_names"].tolist(),
        name="glyph-domains",
    )


STREAMS: Mapping[str, Callable[[ClassOrder], TaskStream]] = {
    "split-fashion-mnist": split_fashion_mnist,
    "split-glyphs": split_glyphs,
    "glyph-domains": glyph_domains,
}
"""By the name that the command line knows them under."""


def _class_incremental(file: str, name: str, num_tasks: int, order: ClassOrder) -> TaskStream:
    arrays, train, test = _read(file)
    return class_incremental(
        train,
        test,
        num_tasks=num_tasks,
        class_order=order,
        class_names=arrays["class_names"].tolist(),
        name=name,
    )


def _read(file: str) -> tuple[dict[str, np.ndarray], ArraySource, ArraySource]:
    arrays = read_arrays(str(resources.files("promptax") / "box" / file))
    train, test = (
        ArraySource(arrays[f"{part}_images"], arrays[f"{part}_labels"], file)
        for part in ("train", "test")
    )
    return arrays, train, test
