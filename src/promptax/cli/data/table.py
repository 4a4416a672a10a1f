"""Text in columns."""

import shutil
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def columns(cells: Sequence[str]) -> str:
    """Short texts one below the other, in as many columns as the terminal is wide."""
    width = max(map(len, cells)) + 2
    count = max(1, shutil.get_terminal_size().columns // width)
    rows = -(-len(cells) // count)
    return "\n".join(
        "".join(cell.ljust(width) for cell in cells[row::rows]).rstrip() for row in range(rows)
    )


def gigabytes(size: int) -> str:
    """A number of bytes, to two digits or so."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
