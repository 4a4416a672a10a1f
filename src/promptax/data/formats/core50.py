"""CORe50 (Lomonaco and Maltoni, 2017): 50 objects in 11 sessions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, find_tree
from promptax.data.formats.format import AbstractFormat, Files, Listed, Listing

TRAIN = (1, 2, 4, 5, 6, 8, 9, 11)
TEST = (3, 7, 10)
"""The official split of the sessions."""

CATEGORIES = (
    *("plug adapter", "mobile phone", "scissors", "light bulb", "can"),
    *("glasses", "ball", "marker", "cup", "remote control"),
)
"""Five objects each, in this order."""


@dataclass(frozen=True)
class Core50(AbstractFormat):
    """`core50_128x128.zip`, with images such as `s1/o1/C_01_01_000.png`.

    Groups are the sessions: those for training in their order, then those for testing.
    """

    def list(self, path: Path) -> Listing:
        """All images by session, object and frame."""
        tree = find_tree(path, "core50_128x128.zip")
        found = sorted(m.groups() for m in map(NAME.fullmatch, tree.names) if m)
        train, test = (_part(tree, found, sessions) for sessions in (TRAIN, TEST))
        names = tuple(f"{kind} {n}" for kind in CATEGORIES for n in range(1, 6))
        return Listing(train, test, names, tree.files, tuple(f"s{s}" for s in TRAIN + TEST))


NAME = re.compile(r"((?:.*/)?s\d+/o\d+/C_(\d+)_(\d+)_\d+\.png)")


def _part(tree: AbstractTree, found: Sequence[tuple[str, ...]], sessions: Sequence[int]) -> Listed:
    chosen = [(name, int(s), int(o)) for name, s, o in found if int(s) in sessions]
    chosen.sort(key=lambda image: (sessions.index(image[1]), image[2], image[0]))
    names, of, objects = zip(*chosen, strict=True) if chosen else ((), (), ())
    if set(objects) != set(range(1, 51)):
        raise UserError(
            f"'{tree.files[0]}' should hold 50 objects in sessions "
            f"{', '.join(map(str, sessions))} of CORe50, and holds {len(set(objects))}."
        )
    groups = [(TRAIN + TEST).index(session) for session in of]
    return Listed(Files(tree, names), [number - 1 for number in objects], names, groups)
