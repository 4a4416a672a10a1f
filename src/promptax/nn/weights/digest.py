"""Digests of files."""

import hashlib
from pathlib import Path

_CHUNK = 1 << 20
"""Bytes read at a time."""


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of the contents of files, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
