"""ImageNet-R (Hendrycks et al., 2021): renditions of 200 classes of ImageNet."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.core.files import read_text
from promptax.data.archive import AbstractTree, find_tree
from promptax.data.formats.classes import images_below, listed, split
from promptax.data.formats.format import AbstractFormat, Listing

IMAGE = re.compile(r"(?:^|/)(n\d{8}/[^/]+)$")
"""Path of an image, from the folder with the WordNet id of its class on."""


@dataclass(frozen=True)
class ImageNetR(AbstractFormat):
    """`imagenet-r.tar`, with images such as `imagenet-r/n01443537/art_0.jpg`.

    It is published without a split. Classes are in the order of their WordNet ids, and have the
    names that the archive's `README.txt` gives them.
    """

    train_list: Path | None = None
    """Text file with the training images of a published split, a path such as
    `n01443537/art_0.jpg` in each line. Needs `test_list` too."""
    test_list: Path | None = None
    """Text file with the test images of the split."""
    test_share: float = 0.2
    """Share of each class for testing, if no lists are given. The digests of file names decide
    which images these are (`split_by_name`)."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all images, or those of the split's lists, in alphabetic order."""
        tree = find_tree(path, "imagenet-r.tar")
        images = {m[1]: name for name in images_below(tree) if (m := IMAGE.search(name))}
        if not images:
            raise UserError(f"'{path}' holds no image such as 'imagenet-r/n01443537/art_0.jpg'.")
        if (self.train_list is None) != (self.test_list is None):
            raise UserError("give both lists of ImageNet-R, train_list and test_list, or neither.")
        if self.train_list is None or self.test_list is None:
            train, test = split(list(images.values()), self.test_share)
        else:
            train = _chosen(images, self.train_list)
            test = _chosen(images, self.test_list)
        wnids = sorted({name.split("/")[0] for name in images})
        names = _class_names(tree)
        return Listing(
            train=listed(tree, train, wnids),
            test=listed(tree, test, wnids),
            class_names=tuple(names.get(wnid, wnid) for wnid in wnids),
            files=tree.files,
        )


def _chosen(images: Mapping[str, str], file: Path) -> list[str]:
    """The images in a list; `images` are their full names, by `class/file`."""
    lines = [line.split() for line in read_text(file, "list").splitlines()]
    chosen: dict[str, str] = {}
    if not any(lines):
        raise UserError(f"list '{file}' names no image.")
    for line in filter(None, lines):
        tail = "/".join(line[0].split("/")[-2:])
        if tail not in images:
            raise UserError(f"'{line[0]}' of '{file}' is not among the images of ImageNet-R.")
        if tail in chosen:
            raise UserError(f"'{line[0]}' is in '{file}' twice.")
        chosen[tail] = images[tail]
    return sorted(chosen.values())


def _class_names(tree: AbstractTree) -> dict[str, str]:
    """The names of classes, by WordNet id; {} if the archive has no list of them."""
    if tree.one("README.txt") is None:
        return {}
    found = (re.fullmatch(r"(n\d{8})\W+(\w.*)", line) for line in tree.lines("README.txt"))
    return {match[1]: match[2].replace("_", " ") for match in found if match}
