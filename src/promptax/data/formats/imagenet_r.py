"""ImageNet-R (Hendrycks et al., 2021): renditions of 200 classes of ImageNet."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, find_tree, reading
from promptax.data.formats.classes import images_below, listed, split
from promptax.data.formats.format import AbstractFormat, Listing


@dataclass(frozen=True)
class ImageNetR(AbstractFormat):
    """`imagenet-r.tar`, with images such as `imagenet-r/n01443537/art_0.jpg`.

    It is published without a split. Classes are in the order of their WordNet ids, and called
    as the archive's `README.txt` says.
    """

    train_list: Path | None = None
    """Text file with a path such as `n01443537/art_0.jpg` in each line: the training images
    of a published split. Needs `test_list` too."""
    test_list: Path | None = None
    """The same for the test images."""
    test_share: float = 0.2
    """Without lists: the part of each class that becomes the test set, by the digests of
    file names (`split_by_name`)."""
    size = 256

    def list(self, path: Path) -> Listing:
        """All images, or those of the lists, in alphabetic order."""
        tree = find_tree(path, "imagenet-r.tar")
        images = {m[1]: name for name in images_below(tree) if (m := IMAGE.search(name))}
        if not images:
            raise UserError(f"'{path}' holds no image such as 'imagenet-r/n01443537/art_0.jpg'.")
        if (self.train_list is None) != (self.test_list is None):
            raise UserError("give both lists of ImageNet-R, train_list and test_list, or neither.")
        if self.train_list is None or self.test_list is None:
            parts = split(list(images.values()), self.test_share)
        else:
            parts = tuple(_chosen(images, file) for file in (self.train_list, self.test_list))
        wnids = sorted({name.split("/")[0] for name in images})
        known = _class_names(tree)
        train, test = (listed(tree, names, wnids) for names in parts)
        return Listing(train, test, tuple(known.get(w, w) for w in wnids), tree.files)


IMAGE = re.compile(r"(?:^|/)(n\d{8}/[^/]+)$")


def _chosen(images: Mapping[str, str], file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"list '{file}' not found.")
    with reading(file):
        # Editors on Windows put a mark at the start.
        lines = [line.split() for line in file.read_text("utf-8-sig").splitlines()]
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
    if tree.one("README.txt") is None:
        return {}
    found = (re.fullmatch(r"(n\d{8})\W+(\w.*)", line) for line in tree.lines("README.txt"))
    return {match[1]: match[2].replace("_", " ") for match in found if match}
