"""CUB-200-2011 (Wah et al., 2011): birds, with text files that list images, classes and parts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promptax.core.errors import UserError
from promptax.core.limits import TEXT
from promptax.core.text import printable
from promptax.data.archive import AbstractTree, find_tree, reading
from promptax.data.formats.classes import check_trained
from promptax.data.formats.format import Files, Listed, Listing
from promptax.data.formats.lists import AbstractNamedFormat
from promptax.data.formats.names import some_names

TABLES = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
"""Files with a number or name and a value in each line."""
PARTS = {"1": "training", "0": "testing"}
"""The meaning of the values in `train_test_split.txt`."""


@dataclass(frozen=True)
class Cub(AbstractNamedFormat):
    """`CUB_200_2011.tgz`, or the folder that it was extracted into: the folder `images`, with
    `images.txt`, `image_class_labels.txt`, `classes.txt` and `train_test_split.txt` beside it.

    Classes and images are in the order of these files. NABirds has the same layout; its classes
    without an image of their own are left out.
    """

    size = 256

    def list(self, path: Path) -> Listing:
        """List all images in the order of `images.txt`."""
        tree = find_tree(path, "CUB_200_2011.tgz")
        top, tables = _read_tables(tree)
        images, labels, classes, split = (tables[name] for name in TABLES)
        _check_same_keys(images, labels, tree, "image_class_labels.txt")
        _check_same_keys(images, split, tree, "train_test_split.txt")
        _check_values(labels, classes, tree, "image_class_labels.txt")
        _check_values(split, PARTS, tree, "train_test_split.txt")
        files = {image: f"{top}images/{name}" for image, name in images.items()}
        _check_files(list(files.values()), tree)
        used = set(labels.values())
        number_of = {key: n for n, key in enumerate(key for key in classes if key in used)}

        def part(is_training: str) -> Listed:
            members = [image for image in images if split[image] == is_training]
            names = [files[image] for image in members]
            return Listed(Files(tree, names), [number_of[labels[m]] for m in members], names)

        class_names = _readable({key: classes[key] for key in number_of})
        listing = self.divided(Listing(part("1"), part("0"), class_names, tree.files))
        check_trained(listing)
        return listing


class _Tables(NamedTuple):
    top: str
    """The folder of the files, with a slash at its end; "" if there is none."""
    of: Mapping[str, Mapping[str, str]]
    """The values by their keys, for each of the files."""


def _read_tables(tree: AbstractTree) -> _Tables:
    names = {}
    for table in TABLES:
        found = tree.one(table)
        if found is None:
            raise UserError(
                f"'{tree.files[0]}' should hold a file '{table}' beside the folder 'images', as "
                "CUB-200-2011 does, and has none."
            )
        names[found] = table
    # In one pass, which matters for a compressed archive of a gigabyte.
    ordered = [name for name in tree.names if name in names]
    tables = {}
    for name, content in zip(ordered, tree.read(ordered), strict=True):
        TEXT.check(len(content), f"'{name}' in '{tree.files[0]}'")
        with reading(tree.files[0]):
            text = content.decode("utf-8-sig")
        tables[names[name]] = _pairs(text, f"'{name}' in '{tree.files[0]}'")
    folder = next(name for name in ordered if names[name] == "images.txt")
    return _Tables(folder.removesuffix("images.txt"), tables)


def _pairs(text: str, source: str) -> dict[str, str]:
    """The key and the value in each line."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, value = line.strip().partition(" ")
        if not key:
            continue
        if not value:
            raise UserError(
                f"line {number} of {source} is '{printable(line)}': expected a number and, after "
                "a space, its value."
            )
        if key in pairs:
            raise UserError(f"line {number} of {source} repeats the number {printable(key)}.")
        pairs[key] = value.strip()
    if not pairs:
        raise UserError(f"{source} is empty.")
    return pairs


def _check_same_keys(
    images: Mapping[str, str], table: Mapping[str, str], tree: AbstractTree, name: str
) -> None:
    """Check that a file has a line for each image and for no other."""
    for ours, theirs, here, there in (
        (images, table, "images.txt", name),
        (table, images, name, "images.txt"),
    ):
        missing = [key for key in ours if key not in theirs]
        if missing:
            raise UserError(
                f"{len(missing):,} of the {len(ours):,} images of {here} in '{tree.files[0]}' are "
                f"not in {there}, such as number {some_names(missing)}."
            )


def _check_values(
    table: Mapping[str, str], allowed: Mapping[str, str], tree: AbstractTree, name: str
) -> None:
    for image, value in table.items():
        if value not in allowed:
            known = list(allowed)
            raise UserError(
                f"image {printable(image)} in {name} in '{tree.files[0]}' has the value "
                f"'{printable(value)}'; expected one of {len(known)}, such as {some_names(known)}."
            )


def _check_files(names: Sequence[str], tree: AbstractTree) -> None:
    """Check that all images are there, and none is listed twice."""
    present = set(tree.names)
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(
            f"{len(missing):,} of the {len(names):,} images of images.txt are not in "
            f"'{tree.files[0]}', such as {some_names(missing)}."
        )
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise UserError(f"'{printable(twice)}' is in images.txt in '{tree.files[0]}' twice.")


def _readable(classes: Mapping[str, str]) -> tuple[str, ...]:
    """Class names without the number at their beginning: `Black footed Albatross` for
    `001.Black_footed_Albatross`. If two lines give the same name, each gets its number in
    `classes.txt`, such as `Bird (2)`, so that names tell classes apart."""
    names = list(classes.values())
    times = Counter(names)
    if max(times.values()) > 1:
        return tuple(f"{n} ({key})" if times[n] > 1 else n for key, n in classes.items())
    plain = [name.partition(".")[2] if name[:3].isdecimal() else name for name in names]
    spaced = [name.replace("_", " ") for name in plain]
    return tuple(spaced if len(set(spaced)) == len(names) and all(spaced) else names)
