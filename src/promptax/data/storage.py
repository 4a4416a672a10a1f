"""Writing files of which no reader ever sees a half: what `prepare` and runs stand on."""

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
    """A `.npy` file of images, each written to its place."""

    def __init__(self, file: Path, examples: int, shape: tuple[int, ...], *, new: bool):
        if new:
            np.lib.format.open_memmap(file, "w+", np.uint8, (examples, *shape))
        self._file = os.open(file, os.O_RDWR)
        self._row = int(np.prod(shape))
        self._start = os.fstat(self._file).st_size - examples * self._row

    def write(self, position: int, pixels: UInt8[np.ndarray, "height width channel"]) -> None:
        """Put an image in its place. Not through a map of memory: where the disk is full, that
        kills the process, and this raises `OSError`."""
        content = np.ascontiguousarray(pixels).data
        if os.pwrite(self._file, content, self._start + position * self._row) < self._row:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Return once everything is on the disk."""
        os.fsync(self._file)

    def __enter__(self) -> "ImageFile":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)


def keep(file: Path, kept: Int[np.ndarray, " some"]) -> None:
    """Leave only some images in a file. It may be done again where it was stopped."""
    images = map_npy(file)
    if len(images) == len(kept):
        return
    with (
        replacing(file) as draft,
        ImageFile(draft, len(kept), images.shape[1:], new=True) as output,
    ):
        for place, position in enumerate(kept):
            output.write(place, images[position])


def fingerprint(path: Path) -> str:
    """The digest of a file, or of the names and sizes of the files in a folder."""
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
    """Keep other processes from filling `folder`; the lock goes with the process, however it ends.

    Raises `UserError` with the other's host and process id.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f".{folder.name}.lock"), f"'{folder}' is being filled by"):
        yield


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turn what the system says about the disk into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of '{folder}' is full: make room, and the same command goes on where "
                "it stopped."
            ) from None
        raise UserError(f"'{error.filename or folder}': {error.strerror or error}.") from None
