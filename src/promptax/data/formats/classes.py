"""Image files sorted into a folder for each class, in a folder or an archive."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree
from promptax.data.formats.format import Files, Listed, Listing, split_by_name

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif"),
)
TESTS = ("test", "val", "validation", "valid")


def list_classes(tree: AbstractTree, share: float, left_out: Sequence[str] = ()) -> Listing:
    """A set of class folders: below `train` and one of `TESTS` (the first that has class
    folders), or all in one place and split by `split_by_name`.

    `left_out` are files, as `class/file`, that are never read.
    """
    top = _top(tree)
    heads = {head.lower(): f"{top}{head}/" for head in _folders(tree, top)}
    tests = [heads[name] for name in TESTS if name in heads and _folders(tree, heads[name])]
    damaged = {name for name in images_below(tree) if _ends(name, left_out)}
    whole = lambda place: [name for name in images_below(tree, place) if name not in damaged]
    if "train" in heads and tests:
        classes = class_folders(tree, heads["train"])
        class_folders(tree, tests[0])
        train, test = whole(heads["train"]), whole(tests[0])
    elif "train" in heads:
        raise UserError(
            f"'{tree.files[0]}' holds 'train', but no folder 'test' or 'val' with class folders: "
            "give the folder of the classes itself to have it split."
        )
    else:
        classes = class_folders(tree, top)
        train, test = split(whole(top), share)
    return Listing(
        listed(tree, train, classes),
        listed(tree, test, classes),
        classes,
        tree.files,
        left_out=tuple(sorted(damaged)),
    )


def images_below(tree: AbstractTree, top: str = "") -> list[str]:
    """The names of a tree's images that start with `top`, in alphabetic order."""
    return sorted(
        name
        for name in tree.names
        if name.startswith(top) and PurePosixPath(name).suffix.lower() in ENDINGS
    )


def class_folders(tree: AbstractTree, top: str) -> tuple[str, ...]:
    """The folders below `top`, in alphabetic order.

    Raises `UserError` where there is none, and one that names a folder without an image.
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
    """Training and test images of a set without a published split, by `split_by_name`."""
    return split_by_name(names, [_folder_of(name) for name in names], share)


def listed(tree: AbstractTree, names: Sequence[str], classes: Sequence[str]) -> Listed:
    """Images of classes that are called as their folders.

    Raises `UserError` for an image in a folder that is no class.
    """
    number = {name: n for n, name in enumerate(classes)}
    for name in names:
        if _folder_of(name) not in number:
            raise UserError(f"'{name}' in '{tree.files[0]}' is in no folder of a known class.")
    return Listed(Files(tree, names), [number[_folder_of(name)] for name in names], names)


def _folder_of(name: str) -> str:
    return PurePosixPath(name).parent.name


def _folders(tree: AbstractTree, top: str) -> list[str]:
    inside = [name[len(top) :] for name in (*tree.names, *tree.folders) if name.startswith(top)]
    return sorted({name.partition("/")[0] for name in inside if "/" in name})


def _top(tree: AbstractTree) -> str:
    """The folder that holds everything, where an archive has one."""
    top, images = "", images_below(tree)
    while len(inside := _folders(tree, top)) == 1 and all("/" in i[len(top) :] for i in images):
        top = f"{top}{inside[0]}/"
    return top


def _ends(name: str, tails: Sequence[str]) -> bool:
    return any(f"/{name}".endswith(f"/{tail}") for tail in tails)
