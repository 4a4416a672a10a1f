"""notMNIST (Bulatov, 2011): letters A to J in many fonts."""

from dataclasses import dataclass
from pathlib import Path

from promptax.data.archive import find_tree
from promptax.data.formats.classes import list_classes, list_undivided
from promptax.data.formats.format import Listing
from promptax.data.formats.lists import AbstractNamedFormat

DAMAGED = (
    "A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png",
    "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png",
)
"""Images that are damaged in the published archive."""


@dataclass(frozen=True)
class NotMnist(AbstractNamedFormat):
    """`notMNIST_small.tar.gz` (folders A to J), or an archive with `Train` and `Test`.

    Images have 28x28 pixels and become RGB.
    """

    test_share: float = 0.2
    """Share of each class for testing, if the archive is not divided (the authors of L2P take a
    fifth of all images). The digests of file names decide which images these are
    (`split_by_name`)."""

    def list(self, path: Path) -> Listing:
        """List all images but the two that are damaged as published."""
        tree = find_tree(path, "notMNIST_small.tar.gz", "notMNIST.zip")
        if self.has_lists:
            return self.divided(list_undivided(tree, DAMAGED))
        return list_classes(tree, self.test_share, left_out=DAMAGED)
