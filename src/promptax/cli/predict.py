"""`promptax predict RUN IMAGE...`: classify image files with a trained run."""

import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.core.files import replacing
from promptax.core.text import printable
from promptax.methods.registry import named_class
from promptax.runs.loading import load
from promptax.runs.predict import Classified, classify_files, image_files

LOGGER = logging.getLogger("promptax")
Format = Literal["text", "csv", "json"]


@dataclass(frozen=True)
class Predict:
    """Print the most probable classes of image files, among the classes the run has learned."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, which needs neither the data that it was trained on nor its old place; or
    a file that `learner.save` has written."""
    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")
    ] = ()
    """Image files of any size and format that Pillow reads, folders of them, or patterns such as
    'photos/**/*.jpg'."""
    list: tuple[str, ...] = ()
    """Text files with one image, folder or pattern on each line; `-` is standard input."""
    output: Path | None = None
    """Write to this file instead of standard output; its name ends in .csv, .json or .txt."""
    format: Format | None = None
    """Format of the output. If None: that of the name of the output file, else text."""
    top: int = 3
    """How many classes to give for each image."""
    batch_size: int = 64
    """Number of images that are read and classified at once; fewer need less memory."""
    skip_damaged: bool = False
    """Leave out files that cannot be read, and say how many, instead of stopping at the first."""
    method: str | None = None
    """Your own method that the run was trained with, as path/to/file.py:Class. Its code only runs
    if you name it here."""
    weights: Path | None = None
    """The file of the run's weights. If None, it is looked for by its digest: where it was, in the
    run folder, beside it, and among downloaded weights."""

    def __post_init__(self):
        if not self.images and not self.list:
            raise UserError("give at least one image file, folder or pattern, or a --list.")
        if self.top < 1:
            raise UserError(f"top is {self.top}; expected at least 1.")
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}; expected at least 1.")
        ends = {".csv": "csv", ".json": "json", ".txt": "text"}
        if self.output is not None and self.format is None and self.output.suffix not in ends:
            raise UserError(
                f"output '{self.output}' should end in .csv, .json or .txt, or give a --format."
            )

    @property
    def chosen_format(self) -> Format:
        """The format, by the flag or by the name of the output file."""
        if self.format is not None or self.output is None:
            return self.format or "text"
        by_name: dict[str, Format] = {".csv": "csv", ".json": "json"}
        return by_name.get(self.output.suffix, "text")


def run(argv: Sequence[str]) -> None:
    """Parse, and write the classes of one batch of images after another."""
    flags: Predict = parse(Predict, argv, prog="promptax predict")
    files = image_files(flags.images, flags.list)
    learner = load(flags.run, method=named_class(flags.method), weights=flags.weights)
    batches = classify_files(
        learner,
        files,
        top=flags.top,
        batch_size=flags.batch_size,
        skip_damaged=flags.skip_damaged,
    )
    damaged = 0
    bar = tqdm(total=len(files), unit="image", disable=not _shows_bar(flags, files))
    with bar, _opened(flags.output) as file, _writer(flags, file) as write:
        for batch in batches:
            for classified in batch:
                if classified.classes:
                    write(classified)
                else:
                    damaged += 1
                    LOGGER.warning(f"left out, since it cannot be read: {classified.path}")
            bar.update(len(batch))
    if flags.output is not None:
        print(f"predictions: {printable(flags.output)}")
    if damaged:
        LOGGER.warning(f"{damaged} of {len(files)} files could not be read and were left out.")


def _shows_bar(flags: Predict, files: Sequence[Path]) -> bool:
    """Whether the work is long, and a bar would not run into lines on the same terminal."""
    is_long = len(files) > flags.batch_size
    return is_long and sys.stderr.isatty() and (flags.output is not None or not sys.stdout.isatty())


@contextmanager
def _opened(path: Path | None) -> Iterator[Any]:
    """The output file, which takes its place when all is written; standard output if None."""
    if path is None:
        yield sys.stdout
        return
    try:
        with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
    except OSError as error:
        raise UserError(f"output '{path}' cannot be written: {error.strerror or error}.") from None


@contextmanager
def _writer(flags: Predict, file: Any) -> Iterator[Callable[[Classified], Any]]:
    """A function that writes the classes of one image in the chosen format."""
    if flags.chosen_format == "csv":
        table = csv.writer(file)
        names = [
            f"{part}_{n}" for n in range(1, flags.top + 1) for part in ("class", "probability")
        ]
        table.writerow(["image", *names])
        yield lambda one: table.writerow(
            [one.path, *(cell for name, share in one.classes for cell in (name, f"{share:.6f}"))]
        )
    elif flags.chosen_format == "json":
        separator = "["

        def write_json(one: Classified) -> None:
            nonlocal separator
            classes = [{"class": name, "probability": share} for name, share in one.classes]
            entry = json.dumps({"image": str(one.path), "classes": classes}, ensure_ascii=False)
            file.write(f"{separator}\n{entry}")
            separator = ","

        yield write_json
        file.write("\n]\n" if separator == "," else "[]\n")
    else:
        yield lambda one: file.write(
            f"{one.path}  " + "  ".join(f"{name} {share:.3f}" for name, share in one.classes) + "\n"
        )
