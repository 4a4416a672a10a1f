"""`promptax predict RUN IMAGE...`: name the classes of image files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.data.image import read_image
from promptax.runs.runner import load


@dataclass(frozen=True)
class Predict:
    """Print the most probable classes of image files, among those that the run has learned."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, of any size and format that Pillow reads."""
    top: int = 3
    """Classes to print for each image."""

    def __post_init__(self):
        if not self.images:
            raise UserError("give at least one image file.")
        if self.top < 1:
            raise UserError(f"top is {self.top}; expected at least 1.")


def run(argv: Sequence[str]) -> None:
    """Parse, read all images before anything is computed, and print a line for each."""
    flags: Predict = parse(Predict, argv, prog="promptax predict")
    learner = load(flags.run)
    side = learner.images.resize or learner.images.size
    images = np.stack([read_image(path, side) for path in flags.images])
    # The probabilities of classes that no task has shown are zero, and not worth a line.
    top = min(flags.top, int(learner.seen.sum()))
    for path, shares in zip(flags.images, np.asarray(learner.probabilities(images)), strict=True):
        best = np.argsort(-shares, kind="stable")[:top]
        print(f"{path}  " + "  ".join(f"{learner.class_names[c]} {shares[c]:.3f}" for c in best))
