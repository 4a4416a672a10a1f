"""Data sets with a folder of image files for each class, in a folder or an archive."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree
from promptax.data.formats.format import Files, Listed, Listing, split_by_name

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif"),
)
"""Of the names of image files."""
TESTS = ("test", "val", "validation", "valid")
"""Names of the folder of test images."""


def list_classes(tree: AbstractTree, share: float, left_out: Sequence[str] = ()) -> Listing:
    """List a set of class folders.

    The class folders are in `train` and in one of `TESTS` (the first one that has class folders).
    Without a folder `train` they are at the top, and their images are divided by `split_by_name`.

    Args:
        tree: The files.
        share: Of the test images, if the set is not divided yet.
        left_out: Files, as `class/file`, that are damaged as published and are not read.

    Returns:
        The examples. Classes have the names of their folders, in alphabetic order.

    Raises:
        UserError: For a set without class folders, or with an empty one.
    """
    top = _top(tree)
    folders = {folder.lower(): f"{top}{folder}/" for folder in _folders(tree, top)}
    tests = [folders[name] for name in TESTS if name in folders and _folders(tree, folders[name])]
    damaged = {name for name in images_below(tree) if _ends_with_any(name, left_out)}
    undamaged = lambda folder: [name for name in images_below(tree, folder) if name not in damaged]
    if "train" in folders and tests:
        classes = class_folders(tree, folders["train"])
        class_folders(tree, tests[0])  # raises an error if one of them is empty
        train = undamaged(folders["train"])
        test = undamaged(tests[0])
    elif "train" in folders:
        raise UserError(
            f"'{tree.files[0]}' holds 'train', but no folder 'test' or 'val' with class folders: "
            "give the folder of the classes itself to have it split."
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
                "folders hold images and no folders; they are side by side at the top, or in a "
                f"folder 'train' and in one of {', '.join(map(repr, TESTS))}."
            )
    labels = [number_of[_folder_of(name)] for name in names]
    return Listed(Files(tree, names), labels, names)


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
