"""SVHN, cropped digits (Netzer et al., 2011)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptax.data.archive import reading
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Pixels
from promptax.data.formats.matlab import read_mat


@dataclass(frozen=True)
class Svhn(AbstractFormat):
    """A folder with `train_32x32.mat` and `test_32x32.mat`. Label 10 is the digit 0."""

    def list(self, path: Path) -> Listing:
        """List all examples in the order of the files."""
        files = (path / "train_32x32.mat", path / "test_32x32.mat")
        return Listing(_part(files[0]), _part(files[1]), tuple("0123456789"), files)


def _part(file: Path) -> Listed:
    arrays = read_mat(file, ["X", "y"])
    with reading(file):
        images = np.moveaxis(arrays["X"], 3, 0)  # stored as [height, width, channel, examples]
        labels = arrays["y"].ravel()
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3) or not len(labels):
            raise ValueError(f"images {images.dtype} {images.shape}, {len(labels)} labels")
        if not set(np.unique(labels).tolist()) <= set(range(1, 11)):
            raise ValueError("labels other than 1 to 10")
        return Listed(Pixels(images), (labels % 10).astype(np.int32), [""] * len(labels))
