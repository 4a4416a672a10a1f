"""Predictions for image files: which files are meant, and their classes batch by batch."""

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from promptax.core.errors import UserError
from promptax.core.files import read_bytes
from promptax.core.settings import Images
from promptax.data.image import read_image
from promptax.training.learner import Learner

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"}
    | {".webp", ".avif", ".jp2"}
)
"""The ends of the names of files that are taken from a folder, in any case."""
STANDARD_INPUT = "-"
"""The name of a list that is read from standard input."""


@dataclass(frozen=True)
class Classified:
    """The most probable classes of an image."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    """Name and probability, the most probable first; empty for an image that was left out."""


def image_files(given: Sequence[str], lists: Sequence[str] = ()) -> list[Path]:
    """The image files that a user names.

    Args:
        given: Files, folders (all images in them, at any depth), and patterns such as
            `photos/**/*.jpg`. A file may have any name.
        lists: Text files that name a file, folder or pattern on each line; `-` is standard input.

    Returns:
        The files in the order in which they are named; those of a folder or pattern sorted.

    Raises:
        UserError: Something names no image.
    """
    names = [*given, *(line for file in lists for line in _lines(file))]
    return [path for name in names for path in _expanded(name)]


def _lines(file: str) -> list[str]:
    if file == STANDARD_INPUT:
        text = sys.stdin.read()
    else:
        try:
            text = read_bytes(Path(file), "list of images").decode()
        except UnicodeDecodeError:
            raise UserError(f"list of images '{file}' is not text in UTF-8.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _expanded(name: str) -> Iterable[Path]:
    """The files that one name stands for."""
    path = Path(name)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
        if not found:
            raise UserError(f"folder '{name}' holds no image file ({', '.join(sorted(SUFFIXES))}).")
        return found
    # A file goes before a pattern, since its name may hold any of the characters of a pattern.
    if path.exists() or not glob.has_magic(name):
        return [path]
    root = Path(path.anchor)
    found = [file for file in sorted(root.glob(str(path.relative_to(root)))) if file.is_file()]
    if not found:
        raise UserError(f"no file matches the pattern '{name}'.")
    return found


def classify_files(
    learner: Learner,
    files: Sequence[Path],
    *,
    top: int,
    batch_size: int,
    skip_damaged: bool = False,
) -> Iterator[list[Classified]]:
    """Classify image files, and yield the results of one batch after another.

    Only the images of one batch are in memory at any time.

    Args:
        learner: The trained model.
        files: The image files.
        top: How many classes of each image to give; no more than the learner has seen.
        batch_size: Images that are computed at once.
        skip_damaged: Give no classes for a file that cannot be read, instead of an error.

    Raises:
        UserError: A file is missing or damaged. Nothing of its batch has been yielded.
    """
    count = min(top, int(learner.seen.sum()))
    for start in range(0, len(files), batch_size):
        paths = files[start : start + batch_size]
        read = [_read(path, learner.images, skip_damaged) for path in paths]
        images = [image for image in read if image is not None]
        best = iter(_best(learner, images, count, min(batch_size, len(files))))
        yield [
            Classified(path, () if image is None else next(best))
            for path, image in zip(paths, read, strict=True)
        ]


def _read(
    path: Path, config: Images, skip_damaged: bool
) -> UInt8[np.ndarray, "side side 3"] | None:
    try:
        return read_image(
            path,
            config.resize or config.size,
            keep_aspect=config.keep_aspect,
            interpolation=config.interpolation,
        )
    except UserError as error:
        if skip_damaged:
            return None
        hint = "" if "not found" in str(error) else " Leave such files out with --skip-damaged."
        raise UserError(f"{error}{hint}") from None


def _best(
    learner: Learner, images: Sequence[np.ndarray], count: int, batch_size: int
) -> Iterator[tuple[tuple[str, float], ...]]:
    """The most probable classes of each image of a batch."""
    if not images:
        return
    # The last batch is filled up, so that nothing is compiled again for its size.
    filling = [images[0]] * (batch_size - len(images))
    probabilities = np.asarray(learner.probabilities(np.stack([*images, *filling])))
    for row in probabilities[: len(images)]:
        order = np.argsort(-row, kind="stable")[:count]
        yield tuple((learner.class_names[c], float(row[c])) for c in order)
