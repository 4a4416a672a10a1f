"""`promptax report RUN...`: a table and a figure of any number of runs and methods."""

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
from promptax.runs.report import Format, Result, by_stream, check_result, group, table


@dataclass(frozen=True)
class Report:
    """Print a table of runs for each stream: mean and standard deviation over seeds.

    A warning on stderr names runs of one table that differ in protocol, weights, split or version.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, or folders that contain folders of runs."""
    form: Annotated[Format, tyro.conf.arg(name="format")] = "markdown"
    """How to write the table."""
    figure: Path | None = None
    """Draw the runs into this PNG file; a second one for dark pages gets `-dark` in its name."""


def run(argv: Sequence[str]) -> None:
    """Parse, read the results, print the table and draw the figure."""
    flags: Report = parse(Report, argv, prog="promptax report")
    results = [result for path in flags.runs for result in _results(path)]
    if not results:
        raise UserError("no run was given.")
    text = table(results, flags.form)
    warnings = caveats(results)
    try:
        drawn = None if flags.figure is None else _draw(results, flags.figure)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"a result.json is damaged, as the figure shows: {error!r}.") from None
    for warning in warnings:
        tell(f"warning: {warning}", longest=None)
    print(text if drawn is None else f"{text}\n\n{drawn}")


def _results(path: Path) -> Iterator[Result]:
    folder = RunFolder(path)
    if folder.config.is_file() or not path.is_dir():
        yield _result(folder)
        return
    inside = sorted(config.parent for config in path.rglob("config.json"))
    if not inside:
        raise UserError(f"there is no run in '{path}'.")
    for member in inside:
        yield _result(RunFolder(member))


def _result(folder: RunFolder) -> Result:
    result = folder.read(folder.result)
    try:
        check_result(result)
        caveats([result])
    except UserError as error:
        raise UserError(f"'{folder.path}': {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"'{folder.result}' is damaged ({type(error).__name__} {error}): was it written by "
            "another version, or by hand?"
        ) from None
    return result


def _draw(results: Sequence[Result], path: Path) -> str:
    from promptax.runs.plot import save_comparison  # matplotlib takes longer to import than JAX

    streams = by_stream(group(results))
    if len(streams) > 1:
        names = ", ".join(sorted({members[0].stream for members in streams.values()}))
        raise UserError(
            f"a figure shows one stream, but these runs are of several ({names}): give the folders "
            "of one stream's runs."
        )
    members = next(iter(streams.values()))
    if not path.suffix:
        raise UserError(f"the figure cannot be written to '{path}': the name should end in .png.")
    dark = path.with_stem(f"{path.stem}-dark")
    try:
        save_comparison(members, path, "light")
        save_comparison(members, dark, "dark")
    except (OSError, ValueError) as error:
        raise UserError(f"the figure cannot be written to '{path}': {reason(error)}.") from None
    return f"figure: {path} and {dark}"
