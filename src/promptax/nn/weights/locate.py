"""Find a file of weights again by its digest, wherever it is now."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from promptax.core.errors import UserError
from promptax.core.files import sha256_of
from promptax.nn.weights.cache import weights_dir
from promptax.nn.weights.catalogue import CATALOGUE
from promptax.nn.weights.read import BUNDLED, find_file
from promptax.nn.weights.safetensors import shards

INDEX = ".safetensors.index.json"
"""The end of the name of a file that lists shards."""
SUFFIXES = (".npz", ".safetensors", INDEX, ".pth", ".pt", ".bin", ".pth.tar")
"""The ends of the names of files of weights."""


def absolute_name(name: str) -> str:
    """A name of weights that means the same in every folder.

    The path of a file becomes absolute. Tags, names of weights in the package, and whatever is not
    on this machine stay as they are.
    """
    path = Path(name).expanduser()
    is_file = name not in BUNDLED and path.is_file()
    return str(path.absolute()) if is_file else name


def digest_of(path: Path) -> str:
    """The SHA-256 digest of weights: of one file, or of all shards that an index lists.

    Raises `UserError` for an index that cannot be read, and as `sha256_of` does.
    """
    return sha256_of(*shards(path)) if path.name.endswith(INDEX) else sha256_of(path)


def find_by_digest(sha256: str, names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """Find weights by their digest.

    Args:
        sha256: The digest, as `digest_of` computes it.
        names: Names of weights that may stand for them: files, tags, or names in the package.
        folders: Folders to search after that. The folder of downloaded weights is searched last.

    Returns:
        The file, or the index of its shards; None if it was not found.
    """
    candidates = [*_named(names), *_in_folders(folders), *_in_cache()]
    return next((path for path in candidates if _has_digest(path, sha256)), None)


def _named(names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        known = name in BUNDLED or name in CATALOGUE or Path(name).is_file()
        if not known:
            continue
        try:
            yield find_file(name)[0]
        except UserError:
            continue  # a tag whose file has not been downloaded


def _in_folders(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES))


def _in_cache() -> Iterator[Path]:
    folder = weights_dir()
    if folder.is_dir():
        yield from _in_folders(path for path in sorted(folder.iterdir()) if path.is_dir())


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return digest_of(path) == sha256
    except UserError:
        return False  # a folder, a broken link or an index of other files
