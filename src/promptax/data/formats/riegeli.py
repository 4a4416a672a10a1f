"""The sizes of the chunks in a Riegeli file, on which ArrayRecord is built.

Its reader allocates as much memory as a chunk promises, and ends the process if there is not so
much. The layout is described at https://github.com/google/riegeli
(doc/riegeli_records_file_format.md).
"""

import os
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

BLOCK = 2**16
"""Each block of so many bytes begins with a header, wherever in a chunk that is."""
BLOCK_HEADER = 24
CHUNK_HEADER = struct.Struct("<8x Q 8x Q Q")
"""The size of the data; the type of the chunk (1 byte) and the number of records; their size."""
TYPE_BITS = 8


class Chunk(NamedTuple):
    """The content of a chunk's header."""

    records: int
    """Number of records."""
    size: int
    """Bytes of all its records when they are decoded."""


def chunks(file: BufferedReader) -> Iterator[Chunk]:
    """Go through the headers of all chunks. Raises `EOFError` if the file ends inside one."""
    end = os.fstat(file.fileno()).st_size
    begin = 0
    while begin < end:
        size, kind_and_records, decoded_size = CHUNK_HEADER.unpack(_header(file, begin))
        records = kind_and_records >> TYPE_BITS
        yield Chunk(records, decoded_size)
        # Positions are record numbers too, so a chunk has at least as many bytes as records.
        by_records = _chunk_boundary(begin + records)
        begin = max(_skip(begin, CHUNK_HEADER.size + size), by_records)
    if begin > end:
        raise EOFError("a chunk is cut off")


def _header(file: BufferedReader, begin: int) -> bytes:
    """The header of the chunk at a position, without the block headers inside."""
    header = b""
    at = begin
    while len(header) < CHUNK_HEADER.size:
        if at % BLOCK < BLOCK_HEADER:
            at += BLOCK_HEADER - at % BLOCK
        file.seek(at)
        part = file.read(min(CHUNK_HEADER.size - len(header), BLOCK - at % BLOCK))
        if not part:
            raise EOFError("the header of a chunk is cut off")
        header += part
        at += len(part)
    return header


def _skip(begin: int, size: int) -> int:
    """The position after so many bytes of a chunk, block headers not counted."""
    usable = BLOCK - BLOCK_HEADER
    in_block = max(begin % BLOCK - BLOCK_HEADER, 0)  # bytes of chunks before it in its block
    full, rest = divmod(in_block + size, usable)
    if full and not rest:  # a chunk that ends with a block ends before the next block's header
        full -= 1
        rest = usable
    return begin - begin % BLOCK + full * BLOCK + BLOCK_HEADER + rest


def _chunk_boundary(position: int) -> int:
    """The first position from there on that is not inside a block header."""
    in_block = position % BLOCK
    return position + (BLOCK_HEADER - in_block if 0 < in_block < BLOCK_HEADER else 0)
