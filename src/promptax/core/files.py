"""Everything that is done with files as such: reading within bounds, writing atomically, locking.

Files come from other people and from killed processes. So a reader here opens regular files only
(opening a named pipe may block for ever, and a device may never end), reads a bounded number of
bytes, runs no code from a file, and raises a `UserError` that names the file. A writer replaces
a file in one step, so that no reader ever sees half of it.
"""

import fcntl
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.core.limits import TEXT, Limit, max_unpacked, open_zip
from promptax.core.text import format_bytes

# NumPy writes no other kinds. Python decompresses bzip2 and LZMA members without any bound.
_NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_REASON_LENGTH = 200  # characters of a parser's message that are passed on to the user
_OTHER_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# --- Reading ---


def require_file(path: Path, kind: str = "file", remedy: str = "") -> None:
    """Make sure that `path` is a regular file, or a link to one.

    Args:
        path: the file that is about to be opened.
        kind: what the file is to the user, such as `"weights"`; it begins the message.
        remedy: what to do where there is no such file: the end of the message.

    Raises:
        UserError: the file is missing, cannot be reached, or is a folder, pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{kind} '{path}' not found{f': {remedy}' if remedy else ''}.") from None
    except OSError as error:
        raise UserError(f"{kind} '{path}' cannot be read: {reason(error)}.") from None
    except ValueError as error:  # a name with a null byte, or with half of a surrogate pair
        raise UserError(f"{kind} {str(path)!a} is no file name ({error}).") from None
    if not stat.S_ISREG(mode):
        found = _OTHER_KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"{kind} '{path}' is {found}, but should be a regular file.")


def open_file(path: Path, kind: str = "file") -> BufferedReader:
    """Open a regular file for reading. Raises `UserError` as `require_file` does."""
    require_file(path, kind)
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{kind} '{path}' cannot be read: {reason(error)}.") from None


def read_bytes(path: Path, kind: str = "file", limit: Limit | None = None) -> bytes:
    """Read a regular file.

    Raises `UserError` as `require_file` does, and for a file that is larger than the limit.
    """
    with open_file(path, kind) as file:
        try:
            if limit is None:
                return file.read()
            # The size that the system reports may be 0 (in /proc) or change: count what is read.
            content = file.read(limit.value + 1)
        except OSError as error:
            raise UserError(f"{kind} '{path}' cannot be read: {reason(error)}.") from None
    limit.check(len(content), f"{kind} '{path}'")
    return content


def read_text(path: Path, kind: str = "file") -> str:
    """Read a UTF-8 text file, such as a list of images, of at most `limits.TEXT` bytes.

    Editors on Windows put a byte order mark at the start, which is left out.

    Raises `UserError` as `read_bytes` does, and for a file that is not UTF-8.
    """
    try:
        return read_bytes(path, kind, TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} '{path}' is damaged or not text in UTF-8 ({error}).") from None


def read_json(path: Path, kind: str = "file", remedy: str = "") -> Any:
    """Read a JSON file of at most `limits.TEXT` bytes.

    Args:
        path: the file.
        kind: what the file is to the user; it begins the message.
        remedy: a sentence that says what to do where the file is damaged.

    Raises:
        UserError: the file is missing, not a regular file, too large or not valid JSON.
    """
    content = read_bytes(path, kind, TEXT)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"{kind} '{path}' is damaged: it cannot be read as JSON ({reason(error)})."
        raise UserError(f"{message} {remedy}".rstrip()) from None


def read_npz(path: Path, kind: str = "file") -> dict[str, np.ndarray]:
    """Read the arrays of a `.npz` file; objects, which NumPy stores as pickles, are refused.

    What the archive says about its sizes is not trusted: no more is decompressed than it
    declares, and no more may be declared than `limits.max_unpacked` allows.

    Raises:
        UserError: the file is missing, not a regular file, damaged, no `.npz`, or too large
            when it is decompressed.
    """
    with open_file(path, kind) as file:
        try:
            with open_zip(file, path) as archive:
                return _arrays(archive, max_unpacked(os.fstat(file.fileno()).st_size))
        except UserError:
            raise
        except Exception as error:
            # NumPy lets through whatever its zip, zlib and header parsers raise on a damaged file.
            raise UserError(
                f"{kind} '{path}' cannot be read as .npz ({reason(error)}): is it cut off?"
            ) from None


def _arrays(archive: zipfile.ZipFile, most: int) -> dict[str, np.ndarray]:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > most:
        raise ValueError(f"it takes {format_bytes(total)} of memory; at most {format_bytes(most)}")
    arrays = {}
    for member in members:
        if member.compress_type not in _NPZ_COMPRESSIONS:
            raise ValueError(f"'{member.filename}' is compressed in a way that NumPy never uses")
        # An opened member ends after the size that it declares, whatever follows in the archive.
        with archive.open(member) as content:
            name = member.filename.removesuffix(".npy")
            arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in a `.npz` file; empty if it cannot be read as such."""
    try:
        with open_file(path) as file, open_zip(file, path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (UserError, OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def map_npy(path: Path) -> np.ndarray:
    """Map the array of a `.npy` file into memory, read-only.

    Raises `UserError` as `require_file` does, and whatever NumPy raises on a damaged file.
    """
    require_file(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def sha256_of(*paths: Path) -> str:
    """The SHA-256 digest of the contents of files, one after another.

    Raises `UserError` where one is not a regular file or cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            try:
                while chunk := file.read(2**20):
                    digest.update(chunk)
            except OSError as error:
                raise UserError(f"'{path}' cannot be read: {reason(error)}.") from None
    return digest.hexdigest()


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the system's words, or the first line of the message.

    `OSError.strerror` alone will not do: it is None where a library raised the error by itself.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0][:_REASON_LENGTH] if lines and lines[0] else type(error).__name__


# --- Writing ---


def require_replaceable(path: Path) -> None:
    """Make sure that `path` is a regular file, or nothing yet.

    A device or a named pipe would be replaced as well, for everyone who uses it.

    Raises:
        UserError: it is a folder, pipe, socket or device, or cannot be the name of a file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {reason(error)}.") from None
    except ValueError as error:  # a name with a null byte, or with half of a surrogate pair
        raise UserError(f"{str(path)!a} is no file name ({error}).") from None
    if not stat.S_ISREG(mode):
        found = _OTHER_KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"'{path}' is {found}, not a file to write: give another name.")


def draft_of(path: Path) -> Path:
    """Where the new content of a file is written before it replaces the old one.

    The name follows from that of the file, so that what a killed process has left is found again,
    and is none that a user would give to a file of their own.
    """
    return path.with_name(f".{path.name}.promptax-draft")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the draft that is yielded; at the end of the block it takes the place of `path`.

    A reader sees the old file or the new one, never half of it, also after a loss of power. After
    an exception the draft is removed and the old file is as it was.

    Raises:
        UserError: `path` is something else than a regular file, such as a folder or a device.
    """
    require_replaceable(path)
    draft = draft_of(path)
    draft.unlink(missing_ok=True)  # whatever stands there: opening a named pipe would never return
    try:
        yield draft
        sync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step, as `replacing` does.

    Raises `ValueError` for a number that is not finite: standard JSON has none, and other readers
    than Python's own would refuse the file.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    with writing(path), replacing(path) as draft:
        draft.write_text(text + "\n", "utf-8")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Give an `OSError` the name of the file that could not be written.

    The system call that fails on a full disk knows no file name, and neither does its error.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


# --- Locks and free space ---


@contextmanager
def file_lock(path: Path, busy: str) -> Iterator[str]:
    """Hold an exclusive lock on the file `path`, which is made where it does not exist.

    The system releases the lock when the process ends, in whatever way. The file holds the host
    and id of the process while it is locked, and is empty afterwards; so the lock file of
    a killed process is not empty.

    Args:
        path: the lock file.
        busy: what is locked, for the message; the holder's name follows, as in
            `"run folder 'a' is in use by"`.

    Yields:
        What a killed process has left in the file; usually empty.

    Raises:
        UserError: another process holds the lock; its host and id are named.
        OSError: the file cannot be made.
    """
    if path.exists():
        require_file(path, "lock file")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(_REASON_LENGTH).strip() or "another process"
            raise UserError(f"{busy} {holder}.") from None
        lock.seek(0)
        left = lock.read(_REASON_LENGTH).strip()
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield left
        finally:
            lock.truncate(0)


def free_space(path: Path) -> int:
    """Free bytes on the disk of a file or folder, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def has_room_for_files(path: Path, number: int) -> bool:
    """Whether so many files can be made on the disk of a file or folder, which need not exist yet.

    Some file systems have a fixed number of inodes, one of which each file or folder takes.
    """
    known = os.statvfs(_existing(path))
    is_limited = known.f_files > 0
    return not is_limited or known.f_favail >= number


def require_open_files(needed: int) -> None:
    """Raise `UserError` if this process may not open so many more files at once."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return
    try:
        free = allowed - len(list(Path("/dev/fd").iterdir()))
    except OSError:  # not even the list of open files can be opened
        free = 0
    if free < needed:
        raise UserError(
            f"this process can open only {max(free, 0)} more files, and needs {needed}: raise the "
            "limit with `ulimit -n 1024`."
        )


def _existing(path: Path) -> Path:
    """The path itself, or the folder nearest to it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def require_space(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Make sure that so many bytes fit on the disk of a folder.

    Args:
        folder: where the bytes are about to be written.
        needed: how many bytes.
        what: what needs the space: the beginning of the message.
        remedy: what to do where there is too little: the end of the message.

    Raises:
        UserError: less is free.
    """
    free = free_space(folder)
    if needed > free:
        raise UserError(
            f"{what} needs {format_bytes(needed)} at '{folder}', where {format_bytes(free)} are "
            f"free: {remedy}."
        )
