"""CORe50 (Lomonaco and Maltoni, 2017): 50 objects in 11 sessions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, find_tree
from promptax.data.formats.format import Files, Listed, Listing
from promptax.data.formats.lists import AbstractNamedFormat

TRAIN = (1, 2, 4, 5, 6, 8, 9, 11)
"""Sessions for training, in the official split."""
TEST = (3, 7, 10)
"""Sessions for testing."""

CATEGORIES = (
    *("plug adapter", "mobile phone", "scissors", "light bulb", "can"),
    *("glasses", "ball", "marker", "cup", "remote control"),
)
"""Categories of the objects, in the order of the objects' numbers."""
OBJECTS_PER_CATEGORY = 5
OBJECTS = OBJECTS_PER_CATEGORY * len(CATEGORIES)
NAME = re.compile(r"((?:.*/)?s\d+/o\d+/C_(\d+)_(\d+)_\d+\.png)")
"""Path of an image; the numbers are those of session and object."""


@dataclass(frozen=True)
class Core50(AbstractNamedFormat):
    """`core50_128x128.zip`, with images such as `s1/o1/C_01_01_000.png`.

    Groups are the sessions: first those for training, then those for testing.
    """

    def list(self, path: Path) -> Listing:
        """List all images by session, object and frame."""
        tree = find_tree(path, "core50_128x128.zip")
        matches = [match for match in map(NAME.fullmatch, tree.names) if match]
        images = [_Image(match[1], int(match[2]), int(match[3])) for match in matches]
        listing = Listing(
            train=_part(tree, images, TRAIN),
            test=_part(tree, images, TEST),
            class_names=tuple(
                f"{category} {number}"
                for category in CATEGORIES
                for number in range(1, OBJECTS_PER_CATEGORY + 1)
            ),
            files=tree.files,
            group_names=tuple(f"s{session}" for session in TRAIN + TEST),
        )
        return self.divided(listing)


class _Image(NamedTuple):
    name: str
    session: int
    object: int


def _part(tree: AbstractTree, images: Sequence[_Image], sessions: Sequence[int]) -> Listed:
    chosen = [image for image in images if image.session in sessions]
    chosen.sort(key=lambda image: (sessions.index(image.session), image.object, image.name))
    objects = {image.object for image in chosen}
    if objects != set(range(1, OBJECTS + 1)):
        raise UserError(
            f"'{tree.files[0]}' should hold {OBJECTS} objects in sessions "
            f"{', '.join(map(str, sessions))} of CORe50, and holds {len(objects)}."
        )
    names = [image.name for image in chosen]
    return Listed(
        images=Files(tree, names),
        labels=[image.object - 1 for image in chosen],
        names=names,
        groups=[(TRAIN + TEST).index(image.session) for image in chosen],
    )
