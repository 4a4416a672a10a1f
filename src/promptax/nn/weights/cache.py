"""Where downloaded weights are kept, and looked for: our own folder and Hugging Face's cache."""

import os
from pathlib import Path

from promptax.core.errors import UserError
from promptax.data.location import cache_dir
from promptax.nn.weights.catalogue import Pretrained


def weights_dir() -> Path:
    """The folder of downloaded weights: `PROMPTAX_WEIGHTS`, or one in the user's cache.

    Raises `UserError` if the path is not a folder.
    """
    chosen = os.environ.get("PROMPTAX_WEIGHTS") or cache_dir() / "weights"
    folder = Path(chosen).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the weights folder '{folder}' is a file: set PROMPTAX_WEIGHTS anew.")
    return folder


def own_path(entry: Pretrained) -> Path:
    """Where the file of a checkpoint is downloaded to, or put by hand."""
    return weights_dir() / entry.tag / entry.filename


def find_cached(entry: Pretrained) -> Path | None:
    """The file of a checkpoint in our folder or in Hugging Face's cache, or None."""
    candidates = [own_path(entry)]
    if (from_hub := _hub_path(entry)) is not None:
        candidates.append(from_hub)
    return next((path for path in candidates if path.is_file()), None)


def hub_home() -> Path:
    """Hugging Face's folder of settings and caches, by the variables that its own library reads."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser()


def _hub_path(entry: Pretrained) -> Path | None:
    """Where `huggingface_hub`, and so timm, keeps the current version of the file."""
    if entry.repository is None:
        return None
    cache = Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub").expanduser()
    folder = cache / f"models--{entry.repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / "snapshots" / commit / entry.filename
