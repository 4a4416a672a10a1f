"""`promptax predict RUN IMAGE...`: classify image files with a trained run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.data.image import read_image
from promptax.methods.registry import named_class
from promptax.runs.runner import load


@dataclass(frozen=True)
class Predict:
    """Print the most probable classes of image files, among the classes the run has learned."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, of any size and format that Pillow reads."""
    method: str | None = None
    """Your own method that the run was trained with, as path/to/file.py:Class. Its code only runs
    if you name it here."""
    top: int = 3
    """How many classes to print for each image."""

    def __post_init__(self):
        if not self.images:
            raise UserError("give at least one image file.")
        if self.top < 1:
            raise UserError(f"top is {self.top}; expected at least 1.")


def run(argv: Sequence[str]) -> None:
    """Parse, read all images before anything is computed, and print a line for each."""
    flags: Predict = parse(Predict, argv, prog="promptax predict")
    learner = load(flags.run, method=named_class(flags.method))
    side = learner.images.resize or learner.images.size
    images = np.stack([read_image(path, side) for path in flags.images])
    # Classes of tasks that are not learned yet have probability zero, so they are not listed.
    top = min(flags.top, int(learner.seen.sum()))
    probabilities = np.asarray(learner.probabilities(images))
    for path, row in zip(flags.images, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        print(f"{path}  " + "  ".join(f"{learner.class_names[c]} {row[c]:.3f}" for c in best))
