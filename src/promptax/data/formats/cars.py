"""Stanford Cars (Krause et al., 2013): 196 models, with annotations in MATLAB files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.archive import AbstractTree, Folder, Forest, Tar, open_tree
from promptax.data.formats.classes import check_trained, images_below
from promptax.data.formats.format import Files, Listed, Listing
from promptax.data.formats.lists import AbstractNamedFormat
from promptax.data.formats.matlab import read_table, read_texts
from promptax.data.formats.names import NamedImages

ARCHIVES = ("car_ims.tgz", "cars_train.tgz", "cars_test.tgz", "car_devkit.tgz")
"""Names of the published archives."""
WHOLE = "cars_annos.mat"
"""The annotations of all images."""
TRAIN = "cars_train_annos.mat"
"""The annotations of the training images alone."""
TESTS = ("cars_test_annos_withlabels.mat", "cars_test_annos.mat")
"""The annotations of the test images; the file of the development kit has no classes."""
CLASSES = "cars_meta.mat"
"""The names of the classes, where they are not beside the annotations."""


@dataclass(frozen=True)
class Cars(AbstractNamedFormat):
    """A folder with `cars_annos.mat` and `car_ims`; or with `cars_train`, `cars_test`, and the
    development kit and `cars_test_annos_withlabels.mat`. Images can be in the published archives.

    Images are in the order of the annotations.
    """

    size = 256

    def list(self, path: Path) -> Listing:
        """List all annotated images."""
        tree = _tree(path)
        if tree.one(WHOLE):
            rows, class_names = _whole(tree)
        else:
            rows, class_names = _parts(tree)
        for row in rows:
            if not 1 <= row.label <= len(class_names):
                raise UserError(
                    f"image '{printable(row.image)}' in the annotations in '{path}' has class "
                    f"{row.label}; expected 1 to {len(class_names)}."
                )
        if len(set(class_names)) < len(class_names):
            twice = next(name for name in class_names if class_names.count(name) > 1)
            raise UserError(
                f"the annotations in '{path}' have {class_names.count(twice)} classes called "
                f"'{printable(twice)}': give each class a name of its own."
            )
        names = _names(tree, rows)

        def part(*, is_test: bool) -> Listed:
            chosen = [n for n, row in enumerate(rows) if row.is_test == is_test]
            files = [names[n] for n in chosen]
            return Listed(Files(tree, files), [rows[n].label - 1 for n in chosen], files)

        listing = self.divided(
            Listing(part(is_test=False), part(is_test=True), tuple(class_names), tree.files)
        )
        check_trained(listing)
        return listing


class _Row(NamedTuple):
    """An annotated image."""

    image: str
    """The end of its path."""
    label: int
    """Its class, from 1 on."""
    is_test: bool


def _tree(path: Path) -> AbstractTree:
    """The files in a folder, and those in its archives that are not extracted."""
    tree = open_tree(path)
    if not isinstance(tree, Folder):
        return tree
    folders = {folder.strip("/").rpartition("/")[2] for folder in tree.folders}
    extracted = {"car_devkit": "devkit"}
    packed = [
        Tar(path / archive)
        for archive in ARCHIVES
        if archive in tree.names
        and extracted.get(stem := archive.removesuffix(".tgz"), stem) not in folders
    ]
    return Forest([tree, *packed]) if packed else tree


def _whole(tree: AbstractTree) -> tuple[list[_Row], list[str]]:
    content = tree.need(WHOLE)
    file = tree.files[0] / WHOLE
    table = read_table(content, "annotations", ["relative_im_path", "class", "test"], file)
    rows = [
        _Row(str(image), _class_number(label, file), bool(is_test))
        for image, label, is_test in table
    ]
    return rows, read_texts(content, "class_names", file)


def _parts(tree: AbstractTree) -> tuple[list[_Row], list[str]]:
    tests = next((name for name in TESTS if tree.one(name)), None)
    if tests is None or tree.one(TRAIN) is None or tree.one(CLASSES) is None:
        raise UserError(
            f"'{tree.files[0]}' should hold {WHOLE}; or {TRAIN}, {CLASSES} and {TESTS[0]}, which "
            "are published as car_devkit.tgz and beside it."
        )
    rows = []
    for name, folder, is_test in ((TRAIN, "cars_train", False), (tests, "cars_test", True)):
        rows += [
            _Row(f"{folder}/{image}", _class_number(label, tree.files[0] / name), is_test)
            for image, label in _labelled(tree, name)
        ]
    return rows, read_texts(tree.need(CLASSES), "class_names", tree.files[0] / CLASSES)


def _class_number(value: object, file: Path) -> int:
    if isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    raise UserError(
        f"'{file}' gives an image the class {printable(value)}; expected a whole number from 1 on."
    )


def _labelled(tree: AbstractTree, name: str) -> list[tuple]:
    """The file name and the class of each annotated image."""
    try:
        return read_table(tree.need(name), "annotations", ["fname", "class"], tree.files[0] / name)
    except UserError as error:
        if name != TESTS[1]:
            raise
        raise UserError(f"{error} The published file with classes is {TESTS[0]}.") from None


def _names(tree: AbstractTree, rows: Sequence[_Row]) -> list[str]:
    """The full names of the annotated images, which must all be there."""
    images = NamedImages(images_below(tree))
    source = f"the annotations in '{tree.files[0]}'"
    return [images.names[at] for at in images.resolve([row.image for row in rows], source)]
