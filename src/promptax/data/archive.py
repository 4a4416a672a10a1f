"""Files in a folder, a zip or a tar, read in place: nothing is extracted to disk.

Archives come from the internet, so links and names that lead out of an archive are refused, and
what is read is bounded by `promptax.core.limits`, whatever an archive says about its sizes.
"""

import itertools
import logging
import os
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath

from promptax.core.errors import UserError
from promptax.core.files import open_file, read_bytes, reason, require_file
from promptax.core.limits import (
    DIRECTORY,
    FILE,
    HEADER,
    TEXT,
    BoundedReads,
    open_zip,
    out_of_memory,
)
from promptax.data.compressed import decompressed

SCANNED = 2**20
"""Bytes that are read at a time on the way to the end of an archive or of a file in it."""
FED = 2**12
"""Bytes of bzip2 or LZMA in a zip that are decompressed at a time: Python does not bound what
comes out of them."""
ENTRY = 100
"""Bytes that each file of a tar adds to the size of the list of files, besides its name."""

_BOUNDED_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOG = logging.getLogger(__name__)


class AbstractTree(ABC):
    """Files of a folder or an archive.

    Their names are paths below the folder or in the archive, with `/` between the parts.
    """

    names: tuple[str, ...]
    """Files, in the order in which they are read fastest. Hidden files are left out."""
    folders: tuple[str, ...]
    """Folders; their names end with `/`. Archives need not list all of them."""
    files: tuple[Path, ...]
    """The archives, or the folder, on the disk."""

    @abstractmethod
    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read the contents of some files, one after another.

        `names` have to be in the order of `self.names`: a compressed archive can be read in one
        pass only.

        Raises `UserError` if the archive is damaged.
        """

    def one(self, ending: str) -> str | None:
        """The full name of the file whose path ends in `ending`; None if there is none.

        Raises `UserError` if there are several.
        """
        found = [name for name in self.names if f"/{name}".endswith(f"/{ending}")]
        if len(found) > 1:
            raise UserError(f"'{self.files[0]}' holds '{found[0]}' and '{found[1]}': keep one.")
        return found[0] if found else None

    def need(self, ending: str) -> bytes:
        """The content of the file whose path ends in `ending`.

        Raises `UserError` if there is none, or several.
        """
        name = self.one(ending)
        if name is None:
            raise UserError(f"'{self.files[0]}' should hold a file '{ending}', and has none.")
        return next(iter(self.read([name])))

    def lines(self, ending: str) -> list[str]:
        """The lines of the text file whose path ends in `ending`, without empty ones."""
        content = self.need(ending)
        TEXT.check(len(content), f"'{ending}' in '{self.files[0]}'")
        with reading(self.files[0]):
            text = content.decode("utf-8-sig")
        return [line.strip() for line in text.splitlines() if line.strip()]


class Folder(AbstractTree):
    """The files below a folder.

    Links are followed, except to a folder that they are in.
    """

    def __init__(self, path: Path):
        self.files = (path,)
        with reading(path):
            self.names, self.folders = _accepted(list(_walk(path, "", ())), path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another."""
        for name in names:
            yield read_bytes(self.files[0] / name, "file", FILE)


class Zip(AbstractTree):
    """The files in a zip archive."""

    def __init__(self, path: Path):
        self.files = (path,)
        with reading(path), open_file(path) as file, open_zip(file, path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            for member in members:
                # The upper 16 bits are the file mode of Unix.
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"'{path}' holds a link, '{member.filename}': refused.")
            names = [member.filename for member in members]
            self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another; zipfile compares each with its checksum."""
        path = self.files[0]
        with reading(path), open_file(path) as file, open_zip(file, path) as archive:
            stored = {_normal(member.filename): member for member in archive.infolist()}
            for name in names:
                yield _unzipped(archive, stored[name])


class Tar(AbstractTree):
    """The files in a tar archive, compressed or not."""

    def __init__(self, path: Path):
        self.files = (path,)
        self._spans: dict[str, tuple[int, int]] = {}  # offset and size
        with reading(path), decompressed(path) as raw:
            names = []
            for member in _members(raw, path):
                names.append(f"{member.name}/" if member.isdir() else member.name)
                self._spans[_normal(member.name)] = (member.offset_data, member.size)
        self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another, in one pass through the archive."""
        with reading(self.files[0]), decompressed(self.files[0]) as raw:
            for name in names:
                start, size = self._spans[name]
                FILE.check(size, f"'{name}' in '{self.files[0]}'")
                raw.seek(start)
                content = raw.read(size)
                if len(content) < size:
                    raise EOFError(f"'{name}' is cut off")
                yield content


class Forest(AbstractTree):
    """The files of several archives or folders together."""

    def __init__(self, trees: Sequence[AbstractTree]):
        self.files = tuple(file for tree in trees for file in tree.files)
        self.names = tuple(name for tree in trees for name in tree.names)
        self.folders = tuple(name for tree in trees for name in tree.folders)
        self._tree_of = {name: tree for tree in trees for name in tree.names}
        if len(self._tree_of) < len(self.names):
            raise UserError(f"'{self.files[0]}' and its neighbours hold files of the same name.")

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another, with one pass through each archive."""
        for tree, own_names in itertools.groupby(names, key=self._tree_of.__getitem__):
            yield from tree.read(own_names)


def open_tree(path: Path) -> AbstractTree:
    """Open a folder, a zip or a tar. Raises `UserError` if it is missing, damaged or unsafe."""
    if path.is_dir():
        return Folder(path)
    require_file(path, "archive")
    return Zip(path) if zipfile.is_zipfile(path) else Tar(path)


def find_tree(path: Path, *archives: str) -> AbstractTree:
    """Open a published archive, wherever the user has it.

    `path` can be the archive, the folder that it was downloaded into, or a folder that it was
    extracted into. In a folder of downloads the archive has one of the names `archives`, and the
    first one that is there is taken.
    """
    for name in archives:
        if (path / name).is_file():
            return open_tree(path / name)
    return open_tree(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading and parsing a file into a `UserError` that names the file.

    Parsers of damaged files raise errors of many types, not all of which they document.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise out_of_memory(f"'{path}'") from None
    except OSError as error:
        if error.errno is None:  # a parser's, such as gzip.BadGzipFile, and not the system's
            raise _damaged(path, error) from None
        raise UserError(f"'{path}' cannot be read: {reason(error)}.") from None
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    cause = f"{type(error).__name__}: {reason(error)}"
    return UserError(f"'{path}' is damaged, cut off or of another format ({cause}).")


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The names of everything below a folder, in alphabetic order.

    `prefix` is the name of the folder, and `above` identifies the folders that it is in.
    """
    status = folder.stat()
    own = (status.st_dev, status.st_ino)
    if own in above:  # a link leads back up
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            yield f"{prefix}{entry.name}/"
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, own))
        elif entry.is_file():
            yield f"{prefix}{entry.name}"


def _unzipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The content of a file in a zip.

    zipfile hands out no more than the declared size, but what it decompresses at once is only
    bounded by how much is asked for.
    """
    FILE.check(member.file_size, f"'{member.filename}' in '{archive.filename}'")
    step = SCANNED if member.compress_type in _BOUNDED_COMPRESSIONS else FED
    with archive.open(member) as file:
        content = b"".join(iter(lambda: file.read(step), b""))
    if len(content) < member.file_size:
        raise EOFError(f"'{member.filename}' is cut off")
    return content


def _members(raw: BufferedIOBase, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files and folders of a tar. After the last one, the end of the archive is checked."""
    headers = BoundedReads(raw, HEADER, f"the header of a file in '{path}'")
    listed = 0
    end = 0
    with tarfile.open(fileobj=headers, mode="r:") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        while (member := archive.next()) is not None:
            # tarfile would keep all of them, with all their headers.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if member.islnk() or member.issym():
                raise UserError(f"'{path}' holds a link, '{member.name}': refused.")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise UserError(f"'{path}' holds '{member.name}', which is no plain file: refused.")
            if member.size < 0 or archive.offset <= end:
                raise ValueError("a header that leads back")
            shared = sum(map(len, archive.pax_headers.values())) + len(archive.pax_headers)
            HEADER.check(shared, f"the header of all files in '{path}'")
            listed += ENTRY + len(member.name)
            DIRECTORY.check(listed, f"the list of the files in '{path}'")
            headers.restart()
            end = archive.offset
            yield member
        # tarfile takes a damaged header, or one that is cut off, for the end of the archive.
        raw.seek(archive.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("no end of archive")
    # A compressed file has its checksum at the end, which is compared when everything is read.
    while raw.read(SCANNED):
        pass


def _accepted(names: Sequence[str], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the names in an archive, and divide them into files and folders without hidden ones."""
    for name in names:
        _check_name(name, path)
    normal = [_normal(name) for name in names]
    shown = [name for name in normal if not any(map(_hidden, name.split("/")))]
    if len(shown) < len(normal):
        first = next(name for name in normal if any(map(_hidden, name.split("/"))))
        hidden = len(normal) - len(shown)
        _LOG.info("'%s': %d hidden files are left out, such as '%s'", path, hidden, first)
    files = [name for name in shown if not name.endswith("/")]
    for name, count in Counter(files).items():
        if count > 1:
            raise UserError(f"'{path}' holds '{name}' twice.")
    return tuple(files), tuple(name for name in shown if name.endswith("/"))


def _check_name(name: str, path: Path) -> None:
    parsed = PureWindowsPath(name)  # with either kind of separator, unlike a Posix path
    if parsed.drive or parsed.root or ".." in parsed.parts:
        raise UserError(f"'{path}' holds '{name}', which leads out of it: refused.")
    if "\n" in name or "\r" in name:
        raise UserError(f"'{path}' holds {name!r}, a name with a line break: refused.")


def _normal(name: str) -> str:
    """The name without parts that mean nothing: `./a//b` is `a/b`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join([*parts, ""] if name.endswith(("/", "/.")) else parts)


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
