"""An outline of stream and weights in each checkpoint, so that it can be opened without them.

A trained model needs no image of the stream to predict, only its class names and sizes; and it
needs the weights beneath it, whichever folder they are in by now.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from promptax.core.errors import UserError
from promptax.data.stream import Split, TaskStream
from promptax.nn.weights.locate import digest_of, find_by_digest
from promptax.nn.weights.metadata import Metadata
from promptax.runs.inputs import Backbone, Found


@dataclass(frozen=True)
class Outline:
    """A stream without its images: names and sizes, from which a method makes its model."""

    name: str
    class_names: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    """The classes of each task."""
    examples: tuple[int, ...]
    """The number of training examples of each task."""
    image_shape: tuple[int, ...]
    """Height, width and channels of an image as the stream gives it."""

    @classmethod
    def of(cls, stream: TaskStream) -> "Outline":
        """The outline of a stream."""
        first = stream.train[stream.tasks[0].index[:1]]
        return cls(
            name=stream.name,
            class_names=stream.class_names,
            classes=tuple(task.classes for task in stream.tasks),
            examples=tuple(len(task.index) for task in stream.tasks),
            image_shape=first.shape[1:],
        )

    def to_json(self) -> dict[str, Any]:
        """The outline as a checkpoint keeps it."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Outline":
        """Read what `to_json` wrote."""
        return cls(
            name=stored["name"],
            class_names=tuple(stored["class_names"]),
            classes=tuple(tuple(classes) for classes in stored["classes"]),
            examples=tuple(stored["examples"]),
            image_shape=tuple(stored["image_shape"]),
        )

    def stream(self) -> TaskStream:
        """A stream of these names and sizes, with black images and without test sets."""
        tasks = tuple(
            # One zero that is repeated: millions of examples take no memory.
            Split(f"task {number}", classes, np.broadcast_to(np.zeros(1, int), count))
            for number, (classes, count) in enumerate(zip(self.classes, self.examples, strict=True))
        )
        source = _BlackImages(self.image_shape)
        return TaskStream(self.name, source, source, self.class_names, tasks=tasks, test_sets=())


class _BlackImages:
    """A source that has the shape of images and nothing else."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    @property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """The label of the one example."""
        return np.zeros(1, np.int32)

    def __getitem__(
        self, index: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channel"]:
        return np.zeros((len(index), *self.shape), np.uint8)


def locate_weights(
    backbone: Backbone,
    recorded: Mapping[str, Any],
    run: Path,
    given: Path | None = None,
) -> Found | None:
    """Find the weights that a run was trained on.

    They are looked for by their digest, under the name and path that the run recorded, in the run
    folder, beside it, and in the folder of downloaded weights.

    Args:
        backbone: The backbone in the run's config.
        recorded: The facts about the weights in the run's checkpoint: `sha256` and, from newer
            versions, `path` and `metadata`.
        run: The run folder.
        given: Where the user says that they are; no other place is looked at then.

    Returns:
        The weights; None if the run uses random ones, which need no file.

    Raises:
        UserError: They were not found, or the given file holds others.
    """
    sha256 = recorded["sha256"]
    if sha256 is None:
        if given is not None:
            raise UserError(f"run '{run}' was trained on random weights, so --weights is not used.")
        return None
    try:
        metadata = Metadata(**recorded.get("metadata", {}))
    except TypeError as error:
        raise UserError(
            f"run '{run}' has facts about its weights that are not of this version ({error})."
        ) from None
    if given is not None:
        found = digest_of(given)
        if found != sha256:
            raise UserError(
                f"run '{run}' was trained on weights of sha256 {sha256}, but '{given}' has "
                f"{found}: give the file that it was trained on."
            )
        return Found(given, metadata)
    names = [name for name in (recorded.get("path"), backbone.weights) if name is not None]
    path = find_by_digest(sha256, names, [run, run.absolute().parent])
    if path is None:
        raise UserError(
            f"the weights of run '{run}' ('{backbone.weights}', sha256 {sha256}) are no longer "
            "there, nor in the run folder, beside it, or among downloaded weights: put the file "
            "into the run folder, or say where it is with --weights."
        )
    return Found(path, metadata)
