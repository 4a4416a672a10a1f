"""Files in a folder, a zip or a tar, read in place: nothing is extracted to disk.

Archives come from the internet, so that names which lead out of them, links and oversized files are
refused.
"""

import bz2
import gzip
import itertools
import lzma
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

LARGEST = 2**29
"""Most bytes of one file. The largest published one, a batch of CIFAR-100, has 154 MB."""

# The first bytes of compressed files.
GZIP = b"\x1f\x8b"
BZIP2 = b"BZh"
XZ = b"\xfd7zXZ\x00"
LONGEST_MAGIC = max(map(len, (GZIP, BZIP2, XZ)))

SCANNED = 2**20
"""Bytes that are read at a time on the way to the end of a compressed archive."""


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
        with reading(self.files[0]):
            text = self.need(ending).decode("utf-8")
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
            file = self.files[0] / name
            with reading(file):
                _check_size(file.stat().st_size, name)
                content = file.read_bytes()
            yield content


class Zip(AbstractTree):
    """The files in a zip archive."""

    def __init__(self, path: Path):
        self.files = (path,)
        with reading(path), zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            for member in members:
                # The upper 16 bits are the file mode of Unix.
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"'{path}' holds a link, '{member.filename}': refused.")
            names = [member.filename for member in members]
            self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another; zipfile compares each with its checksum."""
        with reading(self.files[0]), zipfile.ZipFile(self.files[0]) as archive:
            stored = {_normal(name): name for name in archive.namelist()}
            for name in names:
                _check_size(archive.getinfo(stored[name]).file_size, name)
                yield archive.read(stored[name])


class Tar(AbstractTree):
    """The files in a tar archive, compressed or not."""

    def __init__(self, path: Path):
        self.files = (path,)
        self._spans: dict[str, tuple[int, int]] = {}  # offset and size
        with reading(path), _decompressed(path) as raw:
            names = []
            for member in _members(raw, path):
                names.append(f"{member.name}/" if member.isdir() else member.name)
                self._spans[_normal(member.name)] = (member.offset_data, member.size)
        self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read files one after another, in one pass through the archive."""
        with reading(self.files[0]), _decompressed(self.files[0]) as raw:
            for name in names:
                start, size = self._spans[name]
                _check_size(size, name)
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
    if not path.exists():
        raise UserError(f"'{path}' not found.")
    if not path.is_file():
        raise UserError(f"'{path}' is neither a folder nor a file.")
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
    except OSError as error:
        if error.errno is None:  # a parser's, such as gzip.BadGzipFile, and not the system's
            raise _damaged(path, error) from None
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from None
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    first_line = f"{type(error).__name__}: {error}".splitlines()[0]
    reason = first_line[:200]  # it can quote the content of the file
    return UserError(f"'{path}' is damaged, cut off or of another format ({reason}).")


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


def _members(raw: BufferedIOBase, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files and folders of a tar. After the last one, the end of the archive is checked."""
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        for member in archive:
            if member.islnk() or member.issym():
                raise UserError(f"'{path}' holds a link, '{member.name}': refused.")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise UserError(f"'{path}' holds '{member.name}', which is no plain file: refused.")
            yield member
        # tarfile takes a damaged header, or one that is cut off, for the end of the archive.
        raw.seek(archive.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("no end of archive")
    # A compressed file has its checksum at the end, which is compared when everything is read.
    while raw.read(SCANNED):
        pass


@contextmanager
def _decompressed(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file, decompressed by the format that its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(LONGEST_MAGIC)
        file.seek(0)
        if start.startswith(GZIP):
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield unzipped
        elif start.startswith(BZIP2):
            with bz2.BZ2File(file) as unzipped:
                yield unzipped
        elif start.startswith(XZ):
            with lzma.LZMAFile(file) as unzipped:
                yield unzipped
        else:
            yield file


def _accepted(names: Sequence[str], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the names in an archive, and divide them into files and folders without hidden ones."""
    for name in names:
        _check_name(name, path)
    normal = [_normal(name) for name in names]
    shown = [name for name in normal if not any(map(_hidden, name.split("/")))]
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


def _check_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise UserError(f"'{name}' has {size} bytes; at most {LARGEST} are read.")


def _normal(name: str) -> str:
    return name.removeprefix("./")


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
