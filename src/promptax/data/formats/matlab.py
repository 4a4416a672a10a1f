"""Arrays of numbers in MATLAB files of version 5 (`.mat`), read within bounds."""

import os
import struct
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat

from promptax.core.files import open_file
from promptax.core.limits import UNPACKED, max_unpacked
from promptax.data.archive import reading

HEADER_BYTES = 128
"""Bytes before the first variable. The last two of them tell the byte order."""
TAG_BYTES = 8
"""Bytes of the type and the size of a variable."""
COMPRESSED = 15
"""Type of a variable that is compressed, as MATLAB writes all of them by default."""
CHUNK = 2**16
"""Compressed bytes that are read at a time, and decompressed bytes that are counted at a time."""
NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32)))
"""Types of arrays that hold as many numbers as the file has bytes for. SciPy makes the arrays of
other types, such as cells, as large as the file says."""


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
