"""`promptax export RUN FILE`: write a trained run as a program that needs nothing but JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.core.files import read_json
from promptax.methods.registry import named_class
from promptax.runs.folder import RunFolder
from promptax.runs.loading import load, recorded_image_shape
from promptax.training.exported import PLATFORMS, Platform, description_of


@dataclass(frozen=True)
class Export:
    """Write what a run has learned as a program that needs nothing but JAX.

    `jax.export.deserialize` reads the file. It holds the weights and the preprocessing, and maps
    uint8 images to logits. FILE.json, such as model.jax.json, holds the class names and the shape
    of the images.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or a file of `learner.save`. The data it was trained on is not needed."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File of the program, such as model.jax."""
    platforms: tuple[Platform, ...] = PLATFORMS
    """Where the program can run."""
    batch_size: int | None = None
    """Number of images at a time; any number, if None."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the images. If None: those of the images of the run; for a
    file of `learner.save` those of square colour images, resized as the backbone's images are
    before they are cropped."""
    method: str | None = None
    """Your own method that the run was trained with, as path/to/file.py:Class. Its code only runs
    if you name it here."""
    weights: Path | None = None
    """The file of the run's weights. If None, it is looked for by its digest: where it was, in the
    run folder, beside it, and among downloaded weights."""


def run(argv: Sequence[str]) -> None:
    """Parse, load the run, and write its program."""
    flags: Export = parse(Export, argv, prog="promptax export")
    _check_place(flags)
    learner = load(flags.run, method=named_class(flags.method), weights=flags.weights)
    learner.export(
        flags.file,
        image_shape=flags.image_shape or recorded_image_shape(flags.run),
        batch_size=flags.batch_size,
        platforms=flags.platforms,
    )
    beside = description_of(flags.file)
    shape = " x ".join(map(str, read_json(beside)["image_shape"]))
    print(f"written: {flags.file} and {beside} (takes uint8 images of {shape})")


def _check_place(flags: Export) -> None:
    """Raise `UserError` for a file that a run, or what is exported, consists of."""
    if flags.file.exists() and flags.run.exists() and flags.file.samefile(flags.run):
        raise UserError(
            f"'{flags.file}' is what is to be exported: give the program another name, such as "
            "model.jax."
        )
    for above in flags.file.resolve().parents:
        folder = RunFolder(above)
        if folder.readable(folder.config):
            raise UserError(
                f"'{flags.file}' is inside of the run folder '{above}', which holds the run alone: "
                "write the program elsewhere, such as to model.jax."
            )
