"""The images that weights were pre-trained on, and the settings of a run that follow from them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from promptax import nn
from promptax.core.settings import Images

PUBLISHED = "unit"
"""The normalisation of the published prompt methods, whatever their weights were trained on."""

PREPARATION = frozenset({"size", "resize", "normalisation", "interpolation"})
"""The fields of `Images` that follow from pre-training."""


def pretraining_of(weights: nn.Weights | nn.ResNetWeights) -> dict[str, Any]:
    """Read from a file of weights how images were prepared in pre-training, as fields of `Images`.

    A field that the file says nothing about is left out.
    """
    size = weights.config().image
    if isinstance(weights, nn.ResNetWeights):
        return {"size": size}
    metadata = weights.metadata
    resize = None if metadata.crop is None else round(size / metadata.crop)
    said = {
        "size": size,
        "resize": resize,
        "normalisation": metadata.normalisation,
        "interpolation": metadata.interpolation,
    }
    return {name: value for name, value in said.items() if value is not None}


def as_in_pretraining(images: Images, said: Mapping[str, Any]) -> Images:
    """Prepare images as in pre-training; other settings, and those that `said` leaves out, stay.

    Args:
        images: The settings to start from.
        said: What `pretraining_of` gives.
    """
    resize = said.get("resize", images.resize)
    fits = resize is not None and resize >= said["size"]
    return dataclasses.replace(images, **{**said, "resize": resize if fits else None})


def remarks(images: Images, said: Mapping[str, Any]) -> Iterator[str]:
    """Describe how images are prepared, compared with pre-training.

    Args:
        images: The settings of the run.
        said: What `pretraining_of` gives; empty for random weights.
    """
    if not said:
        return
    used = {name: getattr(images, name) for name in said}
    # An image that is not cut is one that was resized to its own size.
    used |= {"resize": images.resize or images.size} if "resize" in said else {}
    different = {name: value for name, value in used.items() if value != said[name]}
    if different:
        published = different.get("normalisation") == PUBLISHED
        as_published = " (unit: to [0, 1], as the published prompt methods do)" if published else ""
        flags = " ".join(f"--images.{name} {said[name]}" for name in different)
        yield (
            f"images are prepared by preset or flags with {_listed(different)}{as_published}, but "
            f"the weights were trained with {_listed({name: said[name] for name in different})}: "
            f"to follow them, use {flags}."
        )
    else:
        yield f"images are prepared as the weights were trained: {_listed(used)}."
    if "normalisation" not in said:
        yield (
            "the weights do not say how pixels were scaled in pre-training: normalisation "
            f"{images.normalisation} is used (--images.normalisation)."
        )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
