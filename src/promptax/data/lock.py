"""One process at a time in a folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptax.errors import UserError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out; the lock goes with the process.

    Raises `UserError` where the folder cannot be written, and, with the other's host and
    process id, where another process has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(f"folder '{folder}' is in use by {holder}.") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
