"""Arrays, tables and lists of text in MATLAB files of version 5 (`.mat`), read within bounds."""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat

from promptax.core.errors import UserError
from promptax.core.files import open_file
from promptax.core.limits import TEXT, UNPACKED, max_unpacked
from promptax.data.archive import reading

HEADER_BYTES = 128
"""Bytes before the first variable. The last two of them tell the byte order."""
TAG_BYTES = 8
"""Bytes of the type and the size of a variable."""
ARRAY = 14
"""Type of a variable, and of what is in a cell or a field."""
COMPRESSED = 15
"""Type of a variable that is compressed, as MATLAB writes all of them by default."""
CHUNK = 2**16
"""Compressed bytes that are read at a time, and decompressed bytes that are counted at a time."""
NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32)))
"""Types of arrays that hold as many numbers as the file has bytes for. SciPy makes the arrays of
other types, such as cells, as large as the file says."""
CELLS = 1
"""Class of an array whose elements are arrays of any kind."""
STRUCTS = 2
"""Class of an array of structs, whose fields are arrays of any kind."""
PLAIN = (4, *range(6, 16))
"""Classes of arrays of characters and of numbers."""
DEEPEST = 4
"""Most arrays inside one another. SciPy would exhaust the stack."""


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read some variables, which must be arrays of numbers.

    Raises `UserError` if the file is missing, damaged, of another version of the format, lacks
    a variable, or decompresses to more than `limits.max_unpacked` allows.
    """
    with reading(path), open_file(path, "MATLAB file") as file:
        _check_unpacked(file, path)
        file.seek(0)
        kinds = {name: kind for name, _, kind in whosmat(file)}
        for name in names:
            if kinds.get(name) not in NUMBERS:
                raise ValueError(f"'{name}' should be an array of numbers")
        file.seek(0)
        arrays = loadmat(file, variable_names=list(names))
        return {name: np.asarray(arrays[name]) for name in names}


def _check_unpacked(file: BufferedReader, path: Path) -> None:
    """Decompress every variable, a piece at a time, and count its bytes."""
    order = {b"IM": "<", b"MI": ">"}.get(file.read(HEADER_BYTES)[-2:])
    if order is None:
        raise ValueError("no MATLAB file of version 5")
    left = max_unpacked(os.fstat(file.fileno()).st_size)
    while tag := file.read(TAG_BYTES):
        kind, size = struct.unpack(f"{order}II", tag)
        if kind != COMPRESSED:
            file.seek(size, os.SEEK_CUR)
            continue
        decompressor = zlib.decompressobj()
        while size and not decompressor.eof:
            fed = file.read(min(size, CHUNK))
            if not fed:
                raise EOFError("a variable is cut off")
            size -= len(fed)
            while fed:
                left -= len(decompressor.decompress(fed, CHUNK))
                if left < 0:
                    UNPACKED.refuse(f"what '{path}' decompresses to")
                fed = decompressor.unconsumed_tail
        file.seek(size, os.SEEK_CUR)


def read_table(content: bytes, variable: str, columns: Sequence[str], path: Path) -> list[tuple]:
    """Read some fields of an array of structs: a tuple of texts and numbers for each struct.

    Args:
        content: The MATLAB file.
        variable: The name of the array.
        columns: The names of the fields.
        path: The file or the archive that it is in, for errors.

    Returns:
        The rows of the table.

    Raises:
        UserError: The file is damaged, or has no such array or field.
    """
    with reading(path):
        table = np.atleast_1d(_load(content, variable, path))
        known = table.dtype.names or ()
        for column in columns:
            if column not in known:
                found = ", ".join(known) or "none"
                raise UserError(
                    f"'{path}' should have the field '{column}' in '{variable}'; it has {found}."
                )
        return [tuple(_plain(row[column]) for column in columns) for row in table]


def read_texts(content: bytes, variable: str, path: Path) -> list[str]:
    """Read an array of cells that hold text. Raises `UserError` as `read_table` does."""
    with reading(path):
        return [str(_plain(cell)) for cell in np.atleast_1d(_load(content, variable, path))]


def _plain(value: object) -> object:
    """The text or the number that is the only element of an array."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "Ubiuf":
        raise ValueError("a text or a number was expected in each field")
    return array.item()


def _load(content: bytes, variable: str, path: Path) -> np.ndarray:
    for array, order in _arrays(content, path):
        _check_array(array, order, depth=1)
    loaded = loadmat(io.BytesIO(content), variable_names=[variable], squeeze_me=True)
    if variable not in loaded:
        raise ValueError(f"it has no variable '{variable}'")
    return loaded[variable]


def _arrays(content: bytes, path: Path) -> Iterator[tuple[memoryview, str]]:
    """The variables of a file, decompressed, with the byte order."""
    order = {b"IM": "<", b"MI": ">"}.get(content[:HEADER_BYTES][-2:])
    if order is None:
        raise ValueError("no MATLAB file of version 5")
    at = HEADER_BYTES
    unpacked = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        array = memoryview(content)[at : at + TAG_BYTES + size]
        at += TAG_BYTES + size
        if kind == COMPRESSED:
            left = TEXT.value - unpacked
            array = memoryview(zlib.decompressobj().decompress(array[TAG_BYTES:], left + 1))
        unpacked += len(array)
        TEXT.check(unpacked, f"a table in '{path}'")
        yield from ((element, order) for _, element in _elements(array, order))


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The type and the content of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        begin = at + TAG_BYTES
        if kind >> 16:  # a small element, whose content of at most 4 bytes is in its tag
            size = kind >> 16
            kind &= 0xFFFF
            begin = at + TAG_BYTES // 2
            at += TAG_BYTES
        else:
            at = begin + size + -size % TAG_BYTES
        if begin + size > len(data):
            raise EOFError("an array is cut off")
        yield kind, data[begin : begin + size]


def _check_array(data: memoryview, order: str, depth: int) -> None:
    """Check that an array holds as many elements as it says, since SciPy makes room for them."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} arrays inside one another")
    if not data:  # as MATLAB writes an empty field
        return
    elements = _elements(data, order)
    kind = struct.unpack_from(f"{order}I", next(elements)[1])[0] & 0xFF
    shape = np.frombuffer(next(elements)[1], f"{order}i4").tolist()
    count = math.prod(shape)
    next(elements)  # the name
    if kind in PLAIN:
        # Each number or character takes a byte at least.
        held = sum(len(content) for _, content in elements)
        is_right = count <= held
    elif kind in (CELLS, STRUCTS):
        if kind == STRUCTS:
            longest = int.from_bytes(next(elements)[1], "little" if order == "<" else "big")
            fields = len(next(elements)[1]) // longest
            if not fields:
                raise ValueError("structs without a field")
            count *= fields
        held = 0
        for _, content in elements:
            _check_array(content, order, depth + 1)
            held += 1
        is_right = count == held and min(shape) >= 0
    else:
        raise ValueError("an array of a kind that is not read")
    if not is_right:
        raise ValueError(f"an array of {count} elements that holds {held}")
