"""The identity of files."""

import hashlib
from pathlib import Path


def sha256_of(*paths: Path) -> str:
    """Of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
