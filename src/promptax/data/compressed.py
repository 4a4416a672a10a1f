"""Compressed files, decompressed within bounds."""

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptax.core.files import open_file
from promptax.core.limits import UNPACKED, max_unpacked

CHUNK = 2**16
"""Compressed bytes that are read at a time."""
XZ_MEMORY = 2**28
"""Bytes that the decompressor of `.xz` may take. A file says how many it needs: at the highest
level of `xz`, 65 MiB."""

# The first bytes of compressed files.
GZIP = b"\x1f\x8b"
BZIP2 = b"BZh"
XZ = b"\xfd7zXZ\x00"
LONGEST_MAGIC = max(map(len, (GZIP, BZIP2, XZ)))


@contextmanager
def decompressed(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file, decompressed by the format that its first bytes tell.

    Reading a compressed one raises `UserError` where it becomes larger than `limits.max_unpacked`
    allows.
    """
    with open_file(path) as file:
        start = file.read(LONGEST_MAGIC)
        file.seek(0)
        if start.startswith(GZIP):
            unpacked = gzip.GzipFile(fileobj=file)
        elif start.startswith(BZIP2):
            unpacked = bz2.BZ2File(file)
        elif start.startswith(XZ):
            unpacked = io.BufferedReader(_Xz(file), CHUNK)
        else:
            yield file
            return
        with unpacked:
            yield _Bounded(unpacked, path, max_unpacked(os.fstat(file.fileno()).st_size))


class _Bounded(io.BufferedIOBase):
    """A decompressed file, read up to a position."""

    def __init__(self, file: io.BufferedIOBase, path: Path, end: int):
        self._file = file
        self._path = path
        self._end = end

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes; at most those up to the end are decompressed."""
        left = self._end + 1 - self.tell()
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._check(self.tell())
        return content

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position from the start, decompressing what is before it."""
        self._check(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """The position in the decompressed file."""
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._end:
            UNPACKED.refuse(f"what '{self._path}' decompresses to")


class _Xz(io.RawIOBase):
    """A decompressed `.xz` file. Unlike `lzma.LZMAFile`, it bounds the decompressor's memory."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._decompressor = self._new()
        self._position = 0

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether `seek` works: always."""
        return True

    def readinto(self, buffer) -> int:
        """Decompress the next bytes into a buffer, and return how many they are."""
        content = b""
        while not content:
            if self._decompressor.eof:
                # Another stream may follow, after zeros that fill up a block.
                rest = self._decompressor.unused_data.lstrip(b"\0") or self._file.read(CHUNK)
                if not rest.strip(b"\0"):
                    return 0
                self._decompressor = self._new()
                content = self._decompressor.decompress(rest.lstrip(b"\0"), len(buffer))
                continue
            fed = self._file.read(CHUNK) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not fed:
                raise EOFError("compressed file ended before its end marker")
            content = self._decompressor.decompress(fed, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position from the start or from here, decompressing what is before it."""
        target = self._position + position if whence == os.SEEK_CUR else position
        if target < self._position:
            self._rewind()
        skipped = bytearray(CHUNK)
        while self._position < target:
            view = memoryview(skipped)[: target - self._position]
            if not self.readinto(view):
                break
        return self._position

    def tell(self) -> int:
        """The position in the decompressed file."""
        return self._position
