"""`promptax data prepare NAME [PATH]`: decode the images of a set once, before training."""

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro
from tqdm import tqdm

from promptax.cli.parse import parse, take
from promptax.core.errors import UserError, unknown
from promptax.core.limits import bounded_memory
from promptax.core.settings import Interpolation
from promptax.data.catalog import CATALOG
from promptax.data.dataset import Dataset
from promptax.data.fetch import is_fetched
from promptax.data.formats import FORMATS, AbstractFormat
from promptax.data.location import check_name, data_dir_flags, downloads, prepared
from promptax.data.prepare import prepare

F = TypeVar("F", bound=AbstractFormat)

# Layout of the list of formats in the help.
USAGE_WIDTH = 88
NAME_WIDTH = 12
INDENT = "  "


@dataclass(frozen=True)
class Prepare(Generic[F]):
    """Decode the images of a set once, into files that are quick to read.

    Training maps them into memory. Work that was stopped is resumed.
    """

    form: tyro.conf.OmitArgPrefixes[F]
    path: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PATH]")] = None
    """The published archive or folder; the download of `promptax data fetch`, if None."""
    size: int | None = None
    """Side, in pixels, of the square that images are resized to; that of the format, if None."""
    keep_aspect: bool = False
    """Resize the shorter side to `size` and keep the square in the centre, as most PyTorch code
    does for testing, instead of stretching images to the square."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of the resizing, which is always antialiased."""
    skip_damaged: bool = False
    """Leave out images that cannot be decoded, and list them in `meta.json`."""
    overwrite: bool = False
    """Prepare a set again that is there under this name, such as after its files have changed. It
    is replaced once the new one is complete."""
    data_dir: Path | None = None
    """Folder of all data sets; PROMPTAX_DATA or the user's cache, if None."""


def run(argv: Sequence[str]) -> None:
    """Prepare a set, and print where it is and how many images it has."""
    named, rest = take(list(argv), "--format")
    if not rest or rest[0] in ("-h", "--help"):
        print(_usage())
        return
    if rest[0].startswith("-"):
        raise UserError("say first which set to prepare: promptax data prepare NAME ...")
    # The flags depend on the format, so that it must be known before they are parsed.
    name = check_name(rest.pop(0))
    form = _form(name, named)
    flags: Prepare = parse(
        Prepare[type(form)], rest, prog=f"promptax data prepare {name}", default=Prepare(form)
    )
    is_there = prepared(name, flags.data_dir).exists() and not flags.overwrite
    made = _prepare(name, flags)
    print(
        f"{'already prepared' if is_there else 'prepared'}: {made.folder} "
        f"({len(made.train.labels)} training and {len(made.test.labels)} test images, "
        f"{len(made.class_names)} classes)"
        + (" (--overwrite prepares it again)" if is_there else "")
    )
    print(" ".join(["look at it: promptax data info", name, *data_dir_flags(flags.data_dir)]))


def _form(name: str, named: str | None) -> AbstractFormat:
    """The format of a set: the one that is named, or that of the catalog."""
    if named is None and name not in CATALOG:
        raise UserError(
            f"'{name}' is not in the catalog: say with --format how your own set is stored "
            f"({', '.join(FORMATS)})."
        )
    named = named or CATALOG[name].form
    if named not in FORMATS:
        raise unknown("format", named, FORMATS)
    return FORMATS[named]()


def _prepare(name: str, flags: Prepare) -> Dataset:
    path = flags.path.expanduser() if flags.path else _downloaded(name, flags.data_dir)
    if not path.exists():
        raise UserError(f"'{path}' not found.")
    with bounded_memory(), tqdm(desc=name, unit=" images", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return prepare(
            flags.form,
            path,
            prepared(name, flags.data_dir),
            size=flags.size,
            keep_aspect=flags.keep_aspect,
            interpolation=flags.interpolation,
            damaged="skip" if flags.skip_damaged else "raise",
            overwrite=flags.overwrite,
            on_progress=show,
        )


def _downloaded(name: str, data_dir: Path | None) -> Path:
    """The folder of a complete download."""
    folder = downloads(name, data_dir)
    if name in CATALOG and not CATALOG[name].files:
        raise UserError(f"{name} {CATALOG[name].by_hand}. Give its path after the name.")
    if name not in CATALOG:
        raise UserError(f"'{name}' is not in the catalog: give its path after the name.")
    if not is_fetched(CATALOG[name].files, folder):
        raise UserError(
            f"'{folder}' does not hold all files of {name}: run `promptax data fetch {name}`, "
            "or give the path of what you have after the name."
        )
    return folder


def _usage() -> str:
    described = []
    for name, make in FORMATS.items():
        docstring = inspect.getdoc(type(make())) or ""
        summary = docstring.split("\n\n")[0].replace("`", "")
        described += textwrap.wrap(
            f"{name:<{NAME_WIDTH}} {summary}",
            USAGE_WIDTH,
            initial_indent=INDENT,
            subsequent_indent=INDENT + " " * (NAME_WIDTH + 1),
        )
    return "\n".join(
        [
            "usage: promptax data prepare NAME [PATH] [--format FORMAT] [OPTIONS]",
            "",
            "Decode the images of a set once, into files that are quick to read. NAME is one of",
            f"{', '.join(CATALOG)},",
            "or the name of a set of your own, which needs PATH and --format.",
            "",
            "formats:",
            *described,
            "",
            "`promptax data prepare NAME --format FORMAT --help` lists the options of a format.",
        ]
    )
