"""Text that is aligned in columns."""

import math
import shutil
from collections.abc import Sequence

SEPARATOR = "  "
"""Between two columns."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        SEPARATOR.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def columns(cells: Sequence[str]) -> str:
    """Arrange short texts in as many columns as fit into the terminal, from top to bottom."""
    width = max(map(len, cells)) + len(SEPARATOR)
    count = max(1, shutil.get_terminal_size().columns // width)
    rows = math.ceil(len(cells) / count)
    return "\n".join(
        "".join(cell.ljust(width) for cell in cells[row::rows]).rstrip() for row in range(rows)
    )
