"""ImageNet-R (Hendrycks et al., 2021): renditions of 200 classes of ImageNet.

It is published without a split, and code bases divide it in different ways (`Split`). A result says
which division it belongs to.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from promptax.core.errors import UserError
from promptax.core.files import read_text
from promptax.data.archive import AbstractTree, find_tree
from promptax.data.formats.classes import images_below, listed, split
from promptax.data.formats.format import AbstractFormat, Listing

LOGGER = logging.getLogger(__name__)

Split = Literal["auto", "lists", "folders", "sha256", "tfds", "hide"]
"""A way to divide the images."""
PUBLISHED_IMAGES = 30_000
TRAINING_SHARE = 0.8
"""Share of the training images in the divisions that other code bases compute."""

_IMAGE = re.compile(
    r"(?:^|/)(?:(?P<part>train|training|test|testing)/)?(?P<tail>n\d{8}/[^/]+)$", re.IGNORECASE
)
"""Path of an image, from the folder of its part on, if there is one, or from that with the WordNet
id of its class on."""


@dataclass(frozen=True)
class ImageNetR(AbstractFormat):
    """`imagenet-r.tar`, with images such as `imagenet-r/n01443537/art_0.jpg`, or its images in
    folders `train` and `test`.

    Classes are in the order of their WordNet ids, unless the lists number them, and have the names
    that the archive's `README.txt` gives them.
    """

    train_list: Path | None = None
    """List of the training images of a published split: a text file with a path such as
    `n01443537/art_0.jpg` in each line, or a YAML file of CODA-Prompt, whose numbers of classes are
    kept. Needs `test_list` too."""
    test_list: Path | None = None
    """List of the test images of the split."""
    test_share: float = 0.2
    """Share of each class for testing in the split `sha256`."""
    split: Split = "auto"
    """Which images are for testing. lists: as in `train_list` and `test_list`; folders: those in
    the folder `test`, as LAMDA-PILOT and RanPAC hand the set out; sha256: in each class, those
    whose names have the smallest SHA-256 digests; tfds: the last 20 % of TensorFlow Datasets, as in
    the official code of DualPrompt; hide: drawn at random, as in HiDe-Prompt; auto: lists if they
    are given, else folders if there are any, else sha256."""
    split_seed: int = 42
    """Seed of the split `hide`; 42 is the default of HiDe-Prompt."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all images, or those of the split's lists, in alphabetic order."""
        tree = find_tree(path, "imagenet-r.tar")
        found = [(name, match) for name in images_below(tree) if (match := _IMAGE.search(name))]
        if not found:
            raise UserError(f"'{path}' holds no image such as 'imagenet-r/n01443537/art_0.jpg'.")
        parts = {name: (match["part"] or "").lower() for name, match in found}
        tails = {name: match["tail"] for name, match in found}
        chosen = self._chosen_split(divided=any(parts.values()))
        wnids = sorted({tail.split("/")[0] for tail in tails.values()})
        if chosen == "lists":
            train, test, wnids = self._listed_split(tails, wnids)
        elif chosen == "folders":
            train, test = _split_by_folders(parts, path)
        else:
            train, test = self._computed_split(chosen, tails)
        names = _class_names(tree)
        return Listing(
            train=listed(tree, train, wnids),
            test=listed(tree, test, wnids),
            class_names=tuple(names.get(wnid, wnid) for wnid in wnids),
            files=tree.files,
            split=f"hide, seed {self.split_seed}" if chosen == "hide" else chosen,
        )

    def _chosen_split(self, *, divided: bool) -> Split:
        """The split, once it is known whether the images are in folders `train` and `test`."""
        has_lists = self.train_list is not None
        if has_lists != (self.test_list is not None):
            raise UserError("give both lists of ImageNet-R, train_list and test_list, or neither.")
        if has_lists and self.split not in ("auto", "lists"):
            raise UserError(
                f"lists of images are given, but the split is '{self.split}': leave one out."
            )
        if self.split == "lists" and not has_lists:
            raise UserError("the split 'lists' needs train_list and test_list.")
        if self.split != "auto":
            return self.split
        if has_lists:
            return "lists"
        return "folders" if divided else "sha256"

    def _listed_split(
        self, tails: Mapping[str, str], wnids: Sequence[str]
    ) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """The training and the test images of both lists, and the classes in their order."""
        assert self.train_list is not None
        assert self.test_list is not None
        names = {tail: name for name, tail in tails.items()}
        if len(names) < len(tails):
            raise UserError(
                "the folders of ImageNet-R hold an image twice: give the published archive, or "
                "folders without copies."
            )
        train, train_numbers = _read_list(self.train_list, names)
        test, test_numbers = _read_list(self.test_list, names)
        if both := sorted(set(train) & set(test)):
            raise UserError(
                f"'{tails[both[0]]}' is in '{self.train_list}' and in '{self.test_list}'."
            )
        if train_numbers is None or test_numbers is None:
            return train, test, sorted(wnids)
        numbers = {
            wnid: train_numbers.get(wnid, set()) | test_numbers.get(wnid, set()) for wnid in wnids
        }
        return train, test, _numbered_classes(numbers, self.train_list)

    def _computed_split(
        self, chosen: Split, tails: Mapping[str, str]
    ) -> tuple[Sequence[str], Sequence[str]]:
        """The training and the test images of a division that the names of the images decide."""
        by_tail = sorted(tails, key=lambda name: tails[name])
        if chosen == "sha256":
            return split(by_tail, self.test_share)
        if len(by_tail) != PUBLISHED_IMAGES:
            LOGGER.warning(
                f"ImageNet-R has {PUBLISHED_IMAGES:,} images, but {len(by_tail):,} are here: the "
                f"split '{chosen}' is not the published one."
            )
        if chosen == "tfds":
            shuffled = sorted(by_tail, key=lambda name: _tfds_key(tails[name]))
            count = round(TRAINING_SHARE * len(shuffled))
        else:
            if not 0 <= self.split_seed < 2**32:
                raise UserError(f"split seed is {self.split_seed}; expected 0 to 2^32 - 1.")
            shuffled = [by_tail[n] for n in torch_permutation(len(by_tail), self.split_seed)]
            count = int(TRAINING_SHARE * len(shuffled))
        return sorted(shuffled[:count]), sorted(shuffled[count:])


def _split_by_folders(parts: Mapping[str, str], path: Path) -> tuple[list[str], list[str]]:
    train = [name for name, part in parts.items() if part.startswith("train")]
    test = [name for name, part in parts.items() if part.startswith("test")]
    if not train or not test:
        raise UserError(f"'{path}' should hold both folders, `train` and `test`.")
    for name, part in parts.items():
        if not part:
            raise UserError(
                f"'{name}' of '{path}' is neither in the folder `train` nor in `test`: move it, or "
                "choose another split."
            )
    return train, test


def _tfds_key(tail: str) -> str:
    """The hash by which TensorFlow Datasets shuffles an image, in hexadecimal digits.

    (Version 4.9.10, imagenet_r_dataset_builder.py for the key and core/hashing.py for the hash,
    whose salt is the name of the split.) L2P's code (commit dd8836e, libml/input_pipeline.py:421)
    trains on `test[:80%]` of it.
    """
    wnid, _, file = tail.partition("/")
    return hashlib.md5(f"test{wnid}_{file}".encode()).hexdigest()


def torch_permutation(count: int, seed: int) -> list[int]:
    """Compute the result of `torch.randperm(count)` right after `torch.manual_seed(seed)`.

    HiDe-Prompt (commit 0ed4333, continual_datasets/continual_datasets.py:655) divides the images by
    `random_split`, which draws this permutation before anything else has been drawn.
    """
    # PyTorch and NumPy's legacy generator are seeded alike: both are the Mersenne Twister.
    draws = np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
    order = list(range(count))
    for position in range(count - 1):
        other = position + int(draws[position]) % (count - position)
        drawn = order[other]
        order[other] = order[position]
        order[position] = drawn
    return order


def _read_list(
    file: Path, names: Mapping[str, str]
) -> tuple[list[str], dict[str, set[int]] | None]:
    """Read a list of images.

    Args:
        file: The list.
        names: The full names of all images, by `class/file`.

    Returns:
        The full names in alphabetic order, and the numbers that the list gives to each class (by
        WordNet id); None if it gives none.
    """
    lines = [line.strip() for line in read_text(file, "list").splitlines()]
    lines = [line for line in lines if line]
    if lines and lines[0] == "data:":
        entries, numbers = _yaml_lists(lines, file)
    else:
        entries = [line.split()[0] for line in lines]
        numbers = None
    if not entries:
        raise UserError(f"list '{file}' names no image.")
    chosen: dict[str, str] = {}
    for entry in entries:
        tail = "/".join(entry.split("/")[-2:])
        if tail not in names:
            raise UserError(f"'{entry}' of '{file}' is not among the images of ImageNet-R.")
        if tail in chosen:
            raise UserError(f"'{entry}' is in '{file}' twice.")
        chosen[tail] = names[tail]
    if numbers is None:
        return sorted(chosen.values()), None
    of_class: dict[str, set[int]] = {}
    for tail, number in zip(chosen, numbers, strict=True):
        of_class.setdefault(tail.split("/")[0], set()).add(number)
    return sorted(chosen.values()), of_class


def _yaml_lists(lines: Sequence[str], file: Path) -> tuple[list[str], list[int]]:
    """The paths and class numbers of a YAML file with the lists `data` and `targets`.

    This is all of YAML that CODA-Prompt's files use (commit 6417d4f, dataloaders/splits).
    """
    lists: dict[str, list[str]] = {"data": [], "targets": []}
    current = "data"
    for line in lines:
        if line.startswith("- "):
            lists[current].append(line[2:].strip())
        elif line.removesuffix(":") in lists and line.endswith(":"):
            current = line.removesuffix(":")
        else:
            raise UserError(f"'{line}' of '{file}' is not an item of its lists, data and targets.")
    paths = lists["data"]
    targets = lists["targets"]
    if len(paths) != len(targets) or not all(target.isdecimal() for target in targets):
        raise UserError(
            f"'{file}' should have a number in its list targets for each path in its list data."
        )
    return paths, [int(target) for target in targets]


def _numbered_classes(numbers: Mapping[str, set[int]], file: Path) -> list[str]:
    """The WordNet ids in the order of the numbers that lists give them."""
    given = {number: wnid for wnid, several in numbers.items() for number in several}
    one_each = all(len(several) == 1 for several in numbers.values())
    if not one_each or sorted(given) != list(range(len(numbers))):
        raise UserError(
            f"'{file}' and the list of test images should number the {len(numbers)} classes from 0 "
            f"to {len(numbers) - 1}, and each class alike."
        )
    return [given[number] for number in range(len(numbers))]


def _class_names(tree: AbstractTree) -> dict[str, str]:
    """The names of classes, by WordNet id; {} if the archive has no list of them."""
    if tree.one("README.txt") is None:
        return {}
    found = (re.fullmatch(r"(n\d{8})\W+(\w.*)", line) for line in tree.lines("README.txt"))
    return {match[1]: match[2].replace("_", " ") for match in found if match}
