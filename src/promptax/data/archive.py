"""Files in a folder, a zip or a tar, read in place; nothing is extracted to disk."""

import bz2
import gzip
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
"""Bytes of one file. The largest published one, a batch of CIFAR-100, has 154 MB."""


class AbstractTree(ABC):
    """Files by their names: the path below the top, with `/` between its parts."""

    names: tuple[str, ...]
    """In the order in which reading is fast. Hidden files are left out."""
    folders: tuple[str, ...]
    """Folders by their names, which end with `/`; archives need not list them all."""
    files: tuple[Path, ...]
    """The archives, or the folder."""

    @abstractmethod
    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """The contents of some files, which come in the order of `names`.

        Raises `UserError` where the archive is damaged.
        """

    def one(self, ending: str) -> str | None:
        """The name of the one file that has this name, in whatever folder; None if there is none.

        Raises `UserError` where there are several.
        """
        found = [name for name in self.names if f"/{name}".endswith(f"/{ending}")]
        if len(found) > 1:
            raise UserError(f"'{self.files[0]}' holds '{found[0]}' and '{found[1]}': keep one.")
        return found[0] if found else None

    def need(self, ending: str) -> bytes:
        """The content of the one file that has this name. Raises `UserError` without it."""
        name = self.one(ending)
        if name is None:
            raise UserError(f"'{self.files[0]}' should hold a file '{ending}', and has none.")
        return next(iter(self.read([name])))

    def lines(self, ending: str) -> list[str]:
        """The lines of a text file, by `need`, without empty ones."""
        with reading(self.files[0]):
            text = self.need(ending).decode("utf-8")
        return [line.strip() for line in text.splitlines() if line.strip()]


class Folder(AbstractTree):
    """The files below a folder. Links are followed; a link to a folder above is not."""

    def __init__(self, path: Path):
        self.files = (path,)
        with reading(path):
            self.names, self.folders = _accepted(list(_walk(path, "", ())), path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """One after another."""
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
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"'{path}' holds a link, '{member.filename}': refused.")
            names = [member.filename for member in members]
            self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """One after another; each is compared with its checksum."""
        with reading(self.files[0]), zipfile.ZipFile(self.files[0]) as archive:
            stored = {_normal(name): name for name in archive.namelist()}
            for name in names:
                _check_size(archive.getinfo(stored[name]).file_size, name)
                yield archive.read(stored[name])


class Tar(AbstractTree):
    """The files in a tar archive, compressed or not."""

    def __init__(self, path: Path):
        self.files = (path,)
        self._at: dict[str, tuple[int, int]] = {}
        with reading(path), _decompressed(path) as raw:
            names = []
            for member in _members(raw, path):
                names.append(f"{member.name}/" if member.isdir() else member.name)
                self._at[_normal(member.name)] = (member.offset_data, member.size)
        self.names, self.folders = _accepted(names, path)

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """One after another, in one pass."""
        with reading(self.files[0]), _decompressed(self.files[0]) as raw:
            for name in names:
                start, size = self._at[name]
                _check_size(size, name)
                raw.seek(start)
                content = raw.read(size)
                if len(content) < size:
                    raise EOFError(f"'{name}' is cut off")
                yield content


class Forest(AbstractTree):
    """Several trees as one."""

    def __init__(self, trees: Sequence[AbstractTree]):
        self.files = tuple(file for tree in trees for file in tree.files)
        self.names = tuple(name for tree in trees for name in tree.names)
        self.folders = tuple(name for tree in trees for name in tree.folders)
        self._tree = {name: tree for tree in trees for name in tree.names}
        if len(self._tree) < len(self.names):
            raise UserError(f"'{self.files[0]}' and its neighbours hold files of the same name.")

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """One after another, tree after tree."""
        names = list(names)
        start = 0
        while start < len(names):
            tree, end = self._tree[names[start]], start
            while end < len(names) and self._tree[names[end]] is tree:
                end += 1
            yield from tree.read(names[start:end])
            start = end


def open_tree(path: Path) -> AbstractTree:
    """A folder, a zip or a tar. Raises `UserError` if it is missing, damaged or not safe."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"'{path}' not found.")
    if not path.is_file():
        raise UserError(f"'{path}' is neither a folder nor a file.")
    return Zip(path) if zipfile.is_zipfile(path) else Tar(path)


def find_tree(path: Path, *archives: str) -> AbstractTree:
    """The tree at `path`: an archive, a folder that holds one of these archives as it was
    downloaded (the first that is there), or what was extracted from it."""
    held = [path / name for name in archives if (path / name).is_file()]
    return open_tree(held[0] if held else path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes a parser raise into one `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from None
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from None
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return UserError(f"'{path}' is damaged, cut off or of another format ({reason}).")


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    here = folder.stat()
    own = (here.st_dev, here.st_ino)
    if own in above:
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
    """The files and folders of a tar, once everything up to its end is known to be there."""
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        for member in archive:
            if member.islnk() or member.issym():
                raise UserError(f"'{path}' holds a link, '{member.name}': refused.")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise UserError(f"'{path}' holds '{member.name}', which is no plain file: refused.")
            yield member
        # tarfile takes a header that is damaged or cut off for the end.
        raw.seek(archive.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("no end of archive")
    while raw.read(2**20):
        pass  # A compressed file has its checksum at the end.


@contextmanager
def _decompressed(path: Path) -> Iterator[BufferedIOBase]:
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield unzipped
        elif start.startswith(b"BZh"):
            with bz2.BZ2File(file) as unzipped:
                yield unzipped
        elif start.startswith(b"\xfd7zXZ\x00"):
            with lzma.LZMAFile(file) as unzipped:
                yield unzipped
        else:
            yield file


def _accepted(names: Sequence[str], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files and the folders among the names of an archive, without hidden ones."""
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
    inside = PureWindowsPath(name)  # Knows both kinds of separators.
    if inside.drive or inside.root or ".." in inside.parts:
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
