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
from promptax.data.archive import AbstractTree, find_tree
from promptax.data.formats.classes import images_below, listed, split
from promptax.data.formats.format import Listing
from promptax.data.formats.lists import AbstractNamedFormat

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
class ImageNetR(AbstractNamedFormat):
    """`imagenet-r.tar`, with images such as `imagenet-r/n01443537/art_0.jpg`, or its images in
    folders `train` and `test`.

    Classes are in the order of their WordNet ids, unless the lists number them, and have the names
    that the archive's `README.txt` gives them.
    """

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
            train: Sequence[str] = list(tails)
            test: Sequence[str] = []
        elif chosen == "folders":
            train, test = _split_by_folders(parts, path)
        else:
            train, test = self._computed_split(chosen, tails)
        names = _class_names(tree)
        listing = Listing(
            train=listed(tree, train, wnids),
            test=listed(tree, test, wnids),
            class_names=tuple(names.get(wnid, wnid) for wnid in wnids),
            files=tree.files,
            split=f"hide, seed {self.split_seed}" if chosen == "hide" else chosen,
        )
        return self.divided(listing)

    def _chosen_split(self, *, divided: bool) -> Split:
        """The split, once it is known whether the images are in folders `train` and `test`."""
        if self.has_lists and self.split not in ("auto", "lists"):
            raise UserError(
                f"lists of images are given, but the split is '{self.split}': leave one out."
            )
        if self.split == "lists" and not self.has_lists:
            raise UserError("the split 'lists' needs train_list and test_list.")
        if self.split != "auto":
            return self.split
        if self.has_lists:
            return "lists"
        return "folders" if divided else "sha256"

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


def _class_names(tree: AbstractTree) -> dict[str, str]:
    """The names of classes, by WordNet id; {} if the archive has no list of them."""
    if tree.one("README.txt") is None:
        return {}
    found = (re.fullmatch(r"(n\d{8})\W+(\w.*)", line) for line in tree.lines("README.txt"))
    return {match[1]: match[2].replace("_", " ") for match in found if match}
