"""`promptax report RUN...`: a table and a figure of any number of runs and methods."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.output import tell
from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.core.files import reason
from promptax.runs.caveats import caveats
from promptax.runs.folder import RunFolder
from promptax.runs.naming import changed_settings
from promptax.runs.report import (
    Format,
    by_stream,
    group,
    repeated,
    table,
    titles,
)
from promptax.runs.results import Result, read_result

CHANGES_SHOWN = 5
"""Settings of a run that are named because they are not those of its preset."""


@dataclass(frozen=True)
class Report:
    """Print a table of runs for each stream: mean and standard deviation over seeds.

    A warning on stderr names runs of one table that differ in protocol, weights, split or version,
    and a line there the settings of each row that are not those of its preset.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of runs, or folders that contain folders of runs at any depth. A run that repeats
    another one (`promptax reproduce`) is left out."""
    form: Annotated[Format, tyro.conf.arg(name="format")] = "markdown"
    """How to write the table."""
    figure: Path | None = None
    """Draw the runs into this file; its ending chooses PNG, SVG or PDF. A second file, for dark
    pages, gets `-dark` in its name. Runs of several streams get a figure for each stream."""


def run(argv: Sequence[str]) -> None:
    """Parse, read the results, print the table and draw the figure."""
    flags: Report = parse(Report, argv, prog="promptax report")
    # Not resolved, which fails on a loop of links.
    found = {folder.path.absolute(): folder for path in flags.runs for folder in _folders(path)}
    if not found:
        raise UserError("no run was given.")
    results = _without_repetitions(list(found.values()))
    text = table(results, flags.form)
    warnings = caveats(results)
    drawn = None if flags.figure is None else _draw(results, flags.figure)
    for warning in warnings:
        tell(f"warning: {warning}", longest=None)
    for note in _notes(results):
        tell(note, longest=None)
    print(text if drawn is None else f"{text}\n\n{drawn}")


def _folders(path: Path) -> Iterator[RunFolder]:
    """The folder of a run, or the folders of all finished runs at any depth in it."""
    folder = RunFolder(path)
    if not path.is_dir() or folder.config.is_file():
        yield folder
    if not path.is_dir():
        return
    inside = [RunFolder(config.parent) for config in sorted(path.rglob("config.json"))]
    inside = [member for member in inside if member.path != path and member.is_run()]
    if not inside and not folder.config.is_file():
        raise UserError(f"there is no run in '{path}'.")
    for member in inside:
        if member.is_finished():
            yield member
        else:
            tell(f"left out '{member.path}', which is not finished: go on with --resume.")


def _without_repetitions(folders: Sequence[RunFolder]) -> list[Result]:
    """The results of runs, but of those with the same settings and seed only the first."""
    results = [_result(folder) for folder in folders]
    repetitions = repeated(results)
    for number, original in repetitions.items():
        left_out = folders[number].path
        kept = folders[original].path
        agree = results[number]["accuracy_matrix"] == results[original]["accuracy_matrix"]
        but = "" if agree else ", though with other accuracies"
        tell(f"left out '{left_out}', which repeats '{kept}'{but}.", longest=None)
    return [result for number, result in enumerate(results) if number not in repetitions]


def _result(folder: RunFolder) -> Result:
    result = read_result(folder)
    try:
        group([result])
    except UserError as error:
        raise UserError(f"'{folder.path}': {error}") from None
    return result


def _notes(results: Sequence[Result]) -> Iterator[str]:
    """A line for each row of the tables whose method was not trained as its preset says.

    Where the data are and how they are divided is what the tables are made by.
    """
    for member in group(results):
        config = member.results[0]["config"]
        try:
            changed = changed_settings(config, joint=config["data"].get("joint", False))
        except (UserError, LookupError, TypeError):
            continue  # a method in a file of the user's, which is not run here, or an older config
        shown = [
            f"{name.rpartition('.')[2]} {now} (there {usual})"
            for name, (usual, now) in changed.items()
            if name.startswith(("method.", "recipe.", "replay."))
        ]
        if shown:
            rest = len(shown) - CHANGES_SHOWN
            more = f" and {rest} more" if rest > 0 else ""
            yield (
                f"{member.name} on {member.stream} differs from its preset: "
                f"{', '.join(shown[:CHANGES_SHOWN])}{more}."
            )


def _draw(results: Sequence[Result], path: Path) -> str:
    """Draw a figure for each stream, and return a line that names the files.

    If there are several streams, the name of each figure is that of `path` and the stream's.
    """
    from promptax.runs.plot import save_comparison  # matplotlib takes longer to import than JAX

    if not path.suffix:
        raise UserError(
            f"the figure cannot be written to '{path}': the name should end in .png, .svg or .pdf."
        )
    streams = by_stream(group(results))
    names = titles(streams)
    lines = []
    for key, members in streams.items():
        stream = re.sub(r"[^\w.-]+", "-", names[key]).strip("-")
        light = path if len(streams) == 1 else path.with_stem(f"{path.stem}-{stream}")
        dark = light.with_stem(f"{light.stem}-dark")
        try:
            save_comparison(members, light, "light")
            save_comparison(members, dark, "dark")
        except (OSError, ValueError) as error:
            raise UserError(
                f"the figure cannot be written to '{light}': {reason(error)}."
            ) from None
        lines.append(f"figure: {light} and {dark}")
    return "\n".join(lines)
