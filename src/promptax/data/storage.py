"""Writing files of which no reader ever sees a half: what `prepare` and runs stand on."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from promptax.core.errors import UserError
from promptax.data.dataset import sha256_of


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
    images = np.load(file, mmap_mode="r")
    if len(images) == len(kept):
        return
    draft = file.with_suffix(".tmp")
    with ImageFile(draft, len(kept), images.shape[1:], new=True) as output:
        for place, position in enumerate(kept):
            output.write(place, images[position])
        output.flush()
    draft.replace(file)


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises `UserError` where it is damaged."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"'{file}' is damaged: remove '{file.parent}' to start again.") from None


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file: a reader sees the old one or the new one, never half of it."""
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
    sync(draft)
    draft.replace(file)


def sync(path: Path) -> None:
    """Return once a file or the entries of a folder are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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
    """Raise `UserError` where so many bytes are more than the disk has left, counting what the
    folder already takes."""
    taken = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if needed - taken > free:
        raise UserError(
            f"the set needs {needed / 1e9:.1f} GB at '{folder.parent}', of which {free / 1e9:.1f} "
            "GB are free: make room, choose another data folder or a smaller size."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from filling `folder`; the lock goes with the process, however it ends.

    Raises `UserError` with the other's host and process id.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(f"'{folder}' is being filled by {holder}.") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
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
