"""Files of a set in preparation: images written one by one, fingerprints, locks, disk space."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from promptax.core.errors import UserError
from promptax.core.files import file_lock, map_npy, replacing, require_space, sha256_of

_BLOCK = 512  # bytes of the unit of `st_blocks`


class ImageFile:
    """A `.npy` file into which images are written at their positions, in any order."""

    def __init__(self, file: Path, examples: int, shape: tuple[int, ...], *, new: bool):
        """Open a file for writing.

        Args:
            file: Where it is.
            examples: Number of images in the whole file.
            shape: Height, width and channels of an image.
            new: Whether to make the file, full of zeros, or to go on with one that is there.
        """
        if new:
            np.lib.format.open_memmap(file, "w+", np.uint8, (examples, *shape))
        self._file = os.open(file, os.O_RDWR)
        self._image_bytes = int(np.prod(shape))
        # The header is what the images leave of the size of a .npy file.
        self._start = os.fstat(self._file).st_size - examples * self._image_bytes

    def write(self, position: int, pixels: UInt8[np.ndarray, "height width channel"]) -> None:
        """Write an image to its position. Raises `OSError` if the disk is full."""
        # Writing to a memory map would be simpler, but a full disk then kills the process.
        content = np.ascontiguousarray(pixels).data
        offset = self._start + position * self._image_bytes
        if os.pwrite(self._file, content, offset) < self._image_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Return once everything is on the disk."""
        os.fsync(self._file)

    def __enter__(self) -> "ImageFile":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)


def keep(file: Path, kept: Int[np.ndarray, " some"]) -> None:
    """Remove all images from a file but those at the positions `kept`.

    If this is stopped, the file is as it was before, and it can be done again.
    """
    images = map_npy(file)
    if len(images) == len(kept):
        return
    with (
        replacing(file) as draft,
        ImageFile(draft, len(kept), images.shape[1:], new=True) as output,
    ):
        for new_position, position in enumerate(kept):
            output.write(new_position, images[position])


def fingerprint(path: Path) -> str:
    """The digest of a file, or of the names and sizes of the files in a folder.

    A folder can hold a million images, and reading all of them to compare digests takes as long as
    preparing the set.
    """
    if path.is_file():
        return sha256_of(path)
    sizes = hashlib.sha256()
    for folder, _, files in sorted(os.walk(path)):
        for name in sorted(files):
            file = Path(folder, name)
            size = file.stat().st_size if file.is_file() else -1
            sizes.update(f"{file.relative_to(path)}\0{size}\n".encode("utf-8", "surrogateescape"))
    return sizes.hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Raise `UserError` if the disk has less than the needed bytes left, counting what the folder
    already takes."""
    taken = sum(file.stat().st_blocks * _BLOCK for file in folder.iterdir())
    remedy = "make room, choose another data folder or a smaller size"
    require_space(folder.parent, needed - taken, "the set", remedy)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from filling `folder`. The lock is freed when the process ends.

    Raises `UserError`, with the other's host and process id, if another process has the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f".{folder.name}.lock"), f"'{folder}' is being filled by"):
        yield


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turn errors of the disk, such as a full one, into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of '{folder}' is full: make room, and the same command goes on where "
                "it stopped."
            ) from None
        raise UserError(f"'{error.filename or folder}': {error.strerror or error}.") from None
