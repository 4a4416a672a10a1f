"""Data sets with a folder of image files for each class, in a folder or an archive."""

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.archive import AbstractTree
from promptax.data.formats.format import Files, Listed, Listing, split_by_name
from promptax.data.formats.names import ENDINGS

TRAIN = ("train", "training")
"""Names of the folder of training images, in any case."""
TEST = ("test", "testing")
"""Names of the folder of test images."""
VALIDATION = ("val", "valid", "validation")
"""Names of the folder of validation images."""

ValidationUse = Literal["none", "train", "test"]
"""What to do with validation images if there are test images too."""

_LOG = logging.getLogger(__name__)


def list_classes(
    tree: AbstractTree,
    share: float,
    left_out: Sequence[str] = (),
    validation: ValidationUse = "none",
) -> Listing:
    """List a set of class folders.

    The class folders are in folders called as in `TRAIN`, `TEST` and `VALIDATION`; without one for
    testing, the validation images are tested on. Without a folder for training they are at the
    top, and their images are divided by `split_by_name`.

    Args:
        tree: The files.
        share: Of the test images, if the set is not divided yet.
        left_out: Files, as `class/file`, that are damaged as published and are not read.
        validation: What is done with validation images beside test images: they are left out,
            added to the training images, or tested on instead.

    Returns:
        The examples. Classes have the names of their folders, in alphabetic order.

    Raises:
        UserError: For a set without class folders, or with an empty one, or that is divided in
            part only.
    """
    top = _top(tree)
    damaged = {name for name in images_below(tree) if _ends_with_any(name, left_out)}
    undamaged = lambda folder: [name for name in images_below(tree, folder) if name not in damaged]
    trains = _parts(tree, top, TRAIN)
    tests = _parts(tree, top, TEST)
    validations = _parts(tree, top, VALIDATION)
    if trains and (tests or validations):
        tested, added = _use(tree, tests, validations, validation)
        classes = class_folders(tree, trains)
        class_folders(tree, tested)  # raises an error if one of them is empty
        train = [name for folder in (trains, *added) for name in undamaged(folder)]
        test = undamaged(tested)
    elif trains:
        raise UserError(
            f"'{tree.files[0]}' holds '{trains}' with training images, but no folder for testing "
            f"({', '.join(TEST + VALIDATION)}) with class folders: add one, or give the folder "
            "of the classes itself to have it split."
        )
    else:
        classes = class_folders(tree, top)
        train, test = split(undamaged(top), share)
    return Listing(
        listed(tree, train, classes),
        listed(tree, test, classes),
        classes,
        tree.files,
        left_out=tuple(sorted(damaged)),
    )


def list_undivided(tree: AbstractTree, left_out: Sequence[str] = ()) -> Listing:
    """List all images in class folders as training images, for lists to divide them.

    The class of an image is the name of its folder, wherever that is. Raises `UserError` if no
    image is in a folder.
    """
    found = images_below(tree)
    damaged = {name for name in found if _ends_with_any(name, left_out)}
    names = [name for name in found if name not in damaged]
    classes = tuple(sorted({folder for name in names if (folder := _folder_of(name))}))
    if not classes:
        raise UserError(f"'{tree.files[0]}' should hold a folder of images for each class.")
    return Listing(
        listed(tree, [name for name in names if _folder_of(name)], classes),
        listed(tree, [], classes),
        classes,
        tree.files,
        left_out=tuple(sorted(damaged)),
    )


def _parts(tree: AbstractTree, top: str, names: Sequence[str]) -> str:
    """The folder with one of these names that has class folders; "" if there is none.

    Raises `UserError` if there are several.
    """
    found = [f"{top}{folder}/" for folder in _folders(tree, top) if folder.lower() in names]
    filled = [folder for folder in found if _folders(tree, folder)]
    if len(filled) > 1:
        raise UserError(f"'{tree.files[0]}' holds '{filled[0]}' and '{filled[1]}': keep one.")
    return filled[0] if filled else ""


def _use(
    tree: AbstractTree, tests: str, validations: str, use: ValidationUse
) -> tuple[str, tuple[str, ...]]:
    """The folder to test on, and those that are added to the training images."""
    if not tests:
        return validations, ()
    if not validations:
        return tests, ()
    if use == "test":
        return validations, ()
    if use == "train":
        return tests, (validations,)
    count = len(images_below(tree, validations))
    _LOG.info(
        "'%s' has %d validation images in '%s', which are left out (validation train adds them to "
        "the training images, and validation test tests on them)",
        *(tree.files[0], count, validations),
    )
    return tests, ()


def images_below(tree: AbstractTree, top: str = "") -> list[str]:
    """The names of the images in the folder `top`, in alphabetic order."""
    return sorted(
        name
        for name in tree.names
        if name.startswith(top) and PurePosixPath(name).suffix.lower() in ENDINGS
    )


def class_folders(tree: AbstractTree, top: str) -> tuple[str, ...]:
    """The names of the class folders in the folder `top`, in alphabetic order.

    Raises `UserError` if there is none, or for a folder without an image.
    """
    folders = _folders(tree, top)
    filled = {name[len(top) :].partition("/")[0] for name in images_below(tree, top)}
    for folder in folders:
        if folder not in filled:
            raise UserError(f"class folder '{top}{folder}' in '{tree.files[0]}' holds no image.")
    if not folders:
        raise UserError(f"'{tree.files[0]}' should hold a folder of images for each class.")
    return tuple(folders)


def split(names: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Divide the images of class folders into training and test images, by `split_by_name`."""
    return split_by_name(names, [_folder_of(name) for name in names], share)


def listed(tree: AbstractTree, names: Sequence[str], classes: Sequence[str]) -> Listed:
    """The examples of images that are in folders with the names of their classes.

    Raises `UserError` for an image in a folder that is not among the classes.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    for name in names:
        if _folder_of(name) not in number_of:
            raise UserError(
                f"'{name}' in '{tree.files[0]}' is not directly in the folder of a class. Class "
                "folders hold images and no folders; they are side by side at the top, or in the "
                f"folder of a part: one of {', '.join(TRAIN)}, and one of "
                f"{', '.join(TEST + VALIDATION)}."
            )
    labels = [number_of[_folder_of(name)] for name in names]
    return Listed(Files(tree, names), labels, names)


def check_trained(listing: Listing) -> None:
    """Raise `UserError` for a class that has no training image, which nothing could be learned of.

    Sets of class folders need no such check, since their classes are those of training.
    """
    untrained = np.setdiff1d(np.arange(len(listing.class_names)), listing.train.labels)
    if len(untrained):
        raise UserError(
            f"class '{printable(listing.class_names[untrained[0]])}' of '{listing.files[0]}' has "
            "no training image: add some, or leave out its test images."
        )


def _folder_of(name: str) -> str:
    return PurePosixPath(name).parent.name


def _folders(tree: AbstractTree, top: str) -> list[str]:
    """The folders directly in `top`, which is "" or ends with a slash."""
    inside = [name[len(top) :] for name in (*tree.names, *tree.folders) if name.startswith(top)]
    return sorted({name.partition("/")[0] for name in inside if "/" in name})


def _top(tree: AbstractTree) -> str:
    """The innermost folder that holds everything: "", or the folder around an archived set."""
    top = ""
    images = images_below(tree)
    while True:
        folders = _folders(tree, top)
        has_images = any("/" not in name[len(top) :] for name in images)
        if len(folders) != 1 or has_images:
            return top
        top = f"{top}{folders[0]}/"


def _ends_with_any(name: str, endings: Sequence[str]) -> bool:
    """Whether the last parts of a path are one of `endings`."""
    return any(f"/{name}".endswith(f"/{ending}") for ending in endings)
