"""Image files with their classes in a table of comma-separated values (CSV)."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promptax.core.errors import UserError
from promptax.core.files import read_text
from promptax.core.limits import TEXT
from promptax.core.text import printable
from promptax.data.archive import AbstractTree, open_tree, reading
from promptax.data.formats.classes import (
    TEST,
    TRAIN,
    VALIDATION,
    ValidationUse,
    check_trained,
    images_below,
)
from promptax.data.formats.format import Files, Listed, Listing, split_by_name
from promptax.data.formats.lists import AbstractNamedFormat, is_number
from promptax.data.formats.names import NamedImages

COLUMNS = {
    "image": ("filename", "file_name", "file", "path", "filepath", "image", "image_id", "id"),
    "label": ("label", "class", "target", "species", "category"),
    "split": ("split", "set", "part", "partition", "subset"),
}
"""The usual names of each column, in any case. Of several columns for images, such as a path beside
a number, the one that comes first here is read."""
SEPARATORS = ",;\t"
"""Of columns: the most frequent one in the first line."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelTable(AbstractNamedFormat):
    """A folder or an archive of image files, with a CSV file that gives the class of each image,
    and can divide them. The first line names the columns."""

    labels: Path | None = None
    """The CSV file; None: the only one in the folder or archive."""
    image_column: str | None = None
    """Name of the column of images, which are paths as in lists; None: file, filename, image,
    path, image_id or the like."""
    label_column: str | None = None
    """Name of the column of classes; None: label, class, target, species or category."""
    split_column: str | None = None
    """Name of the column that says train, val or test; None: split, set, part, partition or
    subset, if there is one."""
    test_share: float = 0.2
    """Share of each class for testing, if no column divides the set. The digests of class and file
    name decide which images these are (`split_by_name`)."""
    validation: ValidationUse = "none"
    """The use of validation images if there are test images too: they are left out, added to the
    training images (train), or tested on instead (test)."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all images of the table in its order.

        Classes are in the order of their numbers if all of them are numbers, and otherwise in
        alphabetic order.
        """
        tree = open_tree(path)
        table = self._table(tree)
        images = NamedImages(images_below(tree))
        positions = images.resolve(table.images, table.source)
        if unlabelled := len(images.names) - len(positions):
            _LOG.info("%d images are not in %s and are left out", unlabelled, table.source)
        classes = _in_order(table)
        number_of = {name: number for number, name in enumerate(classes)}
        train, test = self._division(table, [images.short_names[at] for at in positions])

        def part(rows: Sequence[int]) -> Listed:
            names = [images.names[positions[row]] for row in rows]
            return Listed(Files(tree, names), [number_of[table.labels[row]] for row in rows], names)

        files = tree.files if self.labels is None else (*tree.files, self.labels)
        listing = self.divided(Listing(part(train), part(test), tuple(classes), files))
        check_trained(listing)
        return listing

    def _table(self, tree: AbstractTree) -> "_Table":
        """Read the table: the given one, or the only one among the files."""
        if self.labels is not None:
            source = f"table '{self.labels}'"
            return self._parse(read_text(self.labels, "table"), source)
        tables = [name for name in tree.names if name.lower().endswith(".csv")]
        if len(tables) != 1:
            raise UserError(
                f"'{tree.files[0]}' should hold one CSV file with the classes of the images, and "
                f"has {len(tables) or 'none'}: give it with LabelTable(labels=...)."
            )
        content = next(iter(tree.read(tables)))
        source = f"table '{printable(tables[0])}' in '{tree.files[0]}'"
        TEXT.check(len(content), source)
        with reading(tree.files[0]):
            return self._parse(content.decode("utf-8-sig"), source)

    def _parse(self, text: str, source: str) -> "_Table":
        """The columns that count. Raises `UserError` for a column or a cell that is missing."""
        first_line = text.partition("\n")[0]
        separator = max(SEPARATORS, key=first_line.count)
        # Strict, because a quote that is not closed would swallow the rows behind it.
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        first_of_row = 1
        table = _Table(source, [], [], [])
        try:
            columns = [name.strip() for name in next(rows, ())]
            image = self._columns("image", columns, source)[0]
            label = self._columns("label", columns, source)[0]
            split = self._columns("split", columns, source)
            first_of_row = rows.line_num + 1
            for row in rows:
                if row:
                    where = f"line {first_of_row} of {source}"
                    table.images.append(_cell(row, image, columns, where))
                    table.labels.append(_cell(row, label, columns, where))
                    if split:
                        table.parts.append(_part(_cell(row, split[0], columns, where), where))
                first_of_row = rows.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"the row that begins in line {first_of_row} of {source} cannot be read as CSV "
                f"({error}): close its quotes, and double those within a cell."
            ) from None
        if not table.images:
            raise UserError(f"{source} has no row below the names of its columns.")
        return table

    def _columns(self, kind: str, columns: Sequence[str], source: str) -> Sequence[int]:
        """The positions of the columns for images, labels or the split, the best one first.

        Args:
            kind: image, label or split.
            columns: The names of all columns.
            source: The table, for messages.

        Returns:
            At least one position, except for the split.

        Raises:
            UserError: There is no such column, or several, of which one has to be chosen.
        """
        named: str | None = getattr(self, f"{kind}_column")
        lower = [name.lower().replace(" ", "_") for name in columns]
        if named is None:
            found = [n for usual in COLUMNS[kind] for n, name in enumerate(lower) if name == usual]
        else:
            found = [n for n, name in enumerate(columns) if name == named]
        present = ", ".join(f"'{printable(name)}'" for name in columns) or "none"
        choose = f"choose one with --{kind}-column (in Python: {kind}_column=...)"
        if named is not None and len(found) != 1:
            raise UserError(f"{source} should have one column '{named}'; it has {present}.")
        if not found and kind != "split":
            raise UserError(
                f"{source} should have a column called {', '.join(COLUMNS[kind])}, and has "
                f"{present}: {choose}."
            )
        if len(found) > 1 and kind != "image":
            several = " and ".join(f"'{printable(columns[n])}'" for n in found)
            raise UserError(f"{source} has the columns {several}: {choose}.")
        return found

    def _division(
        self, table: "_Table", short_names: Sequence[str]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """The rows of the training and of the test images."""
        rows = range(len(table.images))
        if self.has_lists:  # they divide all images
            return rows, ()
        if not table.parts:
            labelled = zip(table.labels, short_names, strict=True)
            keys = [f"{label}/{name}" for label, name in labelled]
            tested = set(split_by_name(keys, table.labels, self.test_share)[1])
            train = [row for row in rows if keys[row] not in tested]
            return train, [row for row in rows if keys[row] in tested]
        of_part = {
            part: [row for row in rows if table.parts[row] == part]
            for part in ("train", "test", "validation")
        }
        train = of_part["train"]
        test = of_part["test"]
        if not test or self.validation == "test":
            return train, of_part["validation"] or test
        if self.validation == "train":
            return sorted(train + of_part["validation"]), test
        if left_out := len(of_part["validation"]):
            _LOG.info(
                "%s has %d validation images, which are left out (validation train adds them to "
                "the training images, and validation test tests on them)",
                *(table.source, left_out),
            )
        return train, test


class _Table(NamedTuple):
    """The columns of a CSV file that count, row by row."""

    source: str
    """The file, for messages."""
    images: list[str]
    labels: list[str]
    parts: list[str]
    """train, test or validation; [] if no column divides the set."""


def _in_order(table: _Table) -> list[str]:
    """The classes in the order of their numbers, or in alphabetic order if not all are numbers."""
    classes = sorted(set(table.labels))
    if not all(map(is_number, classes)):
        return classes
    spelling_of: dict[int, str] = {}
    for label in classes:
        spelling = spelling_of.setdefault(int(label), label)
        if spelling != label:
            raise UserError(
                f"{table.source} writes the class {int(label)} as '{printable(spelling)}' and as "
                f"'{printable(label)}': write the number of a class in one way."
            )
    return sorted(classes, key=int)


def _cell(row: Sequence[str], position: int, columns: Sequence[str], where: str) -> str:
    """The text in a cell. Raises `UserError` if the row is too short, or the cell is empty or has
    several lines."""
    if len(row) != len(columns):
        raise UserError(f"{where} has {len(row)} cells; expected {len(columns)}, as in the first.")
    if "\n" in row[position] or "\r" in row[position]:
        raise UserError(
            f"{where} has a line break in the column '{printable(columns[position])}': close the "
            "quote in this line, or write the cell in one line."
        )
    cell = row[position].strip()
    if not cell:
        raise UserError(f"{where} has nothing in the column '{printable(columns[position])}'.")
    return cell


def _part(name: str, where: str) -> str:
    """The part of the set that a cell names: train, test or validation."""
    for part, names in (("train", TRAIN), ("test", TEST), ("validation", VALIDATION)):
        if name.lower() in names:
            return part
    raise UserError(
        f"{where} says '{printable(name)}' in the column that divides the set; expected one of "
        f"{', '.join(TRAIN + TEST + VALIDATION)}."
    )
