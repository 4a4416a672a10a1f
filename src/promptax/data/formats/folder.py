"""Folders of class folders, such as ImageNet."""

from dataclasses import dataclass
from pathlib import Path

from promptax.data.archive import open_tree
from promptax.data.formats.classes import ValidationUse, list_classes, list_undivided
from promptax.data.formats.format import Listing
from promptax.data.formats.lists import AbstractNamedFormat


@dataclass(frozen=True)
class ImageFolder(AbstractNamedFormat):
    """`train/<class>/*` and `test/<class>/*` (or `val`, in the usual spellings), or `<class>/*`
    alone; a folder, a zip or a tar. Classes are in alphabetic order."""

    test_share: float = 0.2
    """Share of each class for testing, if the set is not divided. The digests of file names decide
    which images these are (`split_by_name`)."""
    validation: ValidationUse = "none"
    """What to do with validation images if there are test images too: leave them out (none), add
    them to the training images (train), or test on them instead (test)."""
    size = 256

    def list(self, path: Path) -> Listing:
        """List all images in alphabetic order."""
        tree = open_tree(path)
        if self.has_lists:
            return self.divided(list_undivided(tree))
        return list_classes(tree, self.test_share, validation=self.validation)
