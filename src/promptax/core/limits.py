"""How much is read from files that come from other people, and how to raise these limits.

A file of a few megabytes can promise, or decompress to, any number of gigabytes. So every reader
counts the bytes that it really gets and stops at a limit, whatever the file says about itself.
Each limit can be set by an environment variable, such as `PROMPTAX_MAX_FILE=2GB`.
"""

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import NoReturn

from promptax.core.errors import UserError
from promptax.core.text import format_bytes

_UNITS = {
    **{"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}


@dataclass(frozen=True)
class Limit:
    """The most that is read of something."""

    variable: str
    """The environment variable that sets another value."""
    default: int
    unit: str = "bytes"
    """The quantity that is limited."""

    @property
    def value(self) -> int:
        """The value that holds now. Raises `UserError` if the variable is not a number."""
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default
        match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", text.lower())
        if match is None or match[2] not in _UNITS:
            raise UserError(f"{self.variable} is '{text}'; expected a number such as 500MB or 2GB.")
        return int(float(match[1]) * _UNITS[match[2]])

    def check(self, count: int, subject: str) -> None:
        """Raise `UserError` if the subject, such as `"image 'a.png'"`, is larger than the limit."""
        if count > self.value:
            self.refuse(subject)

    def refuse(self, subject: str) -> NoReturn:
        """Raise `UserError`, saying how to raise the limit."""
        raise UserError(
            f"{subject} is larger than {self}: if you trust it, set {self.variable} to a larger "
            "number."
        )

    def __str__(self) -> str:
        return format_bytes(self.value) if self.unit == "bytes" else f"{self.value} {self.unit}"


FILE = Limit("PROMPTAX_MAX_FILE", 2**29)
"""One file of an archive or a folder. The largest published one, CIFAR-100's, has 154 MB."""
HEADER = Limit("PROMPTAX_MAX_HEADER", 2**24)
"""Text that describes a file: in a tar its name and attributes, in `.safetensors` the header."""
DIRECTORY = Limit("PROMPTAX_MAX_DIRECTORY", 2**28)
"""The list of the files in an archive. That of ImageNet's 1.3 million takes 170 MB."""
TEXT = Limit("PROMPTAX_MAX_TEXT", 2**26)
"""A JSON file or a list. A result with a thousand tasks has about 20 MB."""
UNPACKED = Limit("PROMPTAX_MAX_UNPACKED", 2**30)
"""The decompressed content of a file, unless `MAX_EXPANSION` allows more."""
PIXELS = Limit("PROMPTAX_MAX_PIXELS", 2**30 // 12, "pixels")
"""One image. This is Pillow's own limit, above which it warns."""
MEMORY = Limit("PROMPTAX_MAX_MEMORY", 2**32)
"""The memory of `promptax data prepare`, beyond what it has when it starts to read."""

LIMITS = (FILE, HEADER, DIRECTORY, TEXT, UNPACKED, PIXELS, MEMORY)

MAX_EXPANSION = 100
"""Above `UNPACKED`, a file may decompress to this many times its size.

Deflate can expand a file a thousandfold, but gigabytes of real images or weights do not compress
nearly as well: more than this is a decompression bomb.
"""


def max_unpacked(compressed: int) -> int:
    """The most bytes that are decompressed from a file of so many bytes."""
    return max(UNPACKED.value, MAX_EXPANSION * compressed)


class BoundedReads(BufferedIOBase):
    """A file that limits how much a parser may read at once, for formats that say how long parts
    are.

    It is for the headers of archives, whose parsers read as many bytes as a header promises.
    """

    def __init__(self, file: BufferedIOBase, limit: Limit, subject: str):
        """Wrap a file.

        Args:
            file: the file.
            limit: the most that is read until `restart` is called.
            subject: what is read, for the message.
        """
        self._file = file
        self._limit: Limit | None = limit
        self._subject = subject
        self._taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes. Raises `UserError` beyond the limit, before they are read."""
        if self._limit is None:
            return self._file.read(size)
        left = self._limit.value - self._taken + 1
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._taken += len(content)
        self._limit.check(self._taken, self._subject)
        return content

    def restart(self) -> None:
        """Count from 0 again: the parser is done with one header."""
        self._taken = 0

    def lift(self) -> None:
        """Read without a limit from now on: the parser is done with all headers."""
        self._limit = None

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        """Move in the file, as any file does."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Whether `seek` works: always."""
        return True


def open_zip(file: BufferedIOBase, path: Path) -> zipfile.ZipFile:
    """Open a zip, reading at most `DIRECTORY` of its list of files.

    Raises `UserError` for a longer list, and whatever `zipfile` raises on a damaged file.
    """
    bounded = BoundedReads(file, DIRECTORY, f"the list of the files in '{path}'")
    archive = zipfile.ZipFile(bounded)  # pyright: ignore[reportArgumentType]
    bounded.lift()
    return archive


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take `MEMORY` more bytes of memory and no more, until the block ends.

    Beyond that, an allocation in any library fails with a `MemoryError`, which becomes a
    `UserError`. Memory-mapped files do not count. This is for a command that reads foreign files
    and does nothing else; it has an effect on Linux only.
    """
    with ExitStack() as stack:
        if sys.platform == "linux":
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            wanted = _data_size() + MEMORY.value
            known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *known]), hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_DATA, (soft, hard))
        try:
            yield
        except MemoryError:
            raise out_of_memory("this") from None


def out_of_memory(subject: str) -> UserError:
    """The error where the subject, such as `"'a.npz'"`, does not fit into memory."""
    return UserError(
        f"{subject} does not fit into memory, of which at most {MEMORY} more are taken: if you "
        f"trust it, set {MEMORY.variable} to a larger number."
    )


def _data_size() -> int:
    """The bytes that `RLIMIT_DATA` counts for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 2**10
    return 0
