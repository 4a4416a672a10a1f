"""Download weights by their tag from where their owners publish them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.core.files import write_json
from promptax.data.catalog import Checksum, File
from promptax.data.fetch import Patience, fetch
from promptax.data.storage import disk
from promptax.nn.weights.cache import find_cached, hub_home, own_path
from promptax.nn.weights.catalogue import Pretrained, entry_of
from promptax.nn.weights.read import read_file

RECORD = "fetched.json"
"""Beside a downloaded file: its address, size and digest at the time of the download."""
_ENDPOINT = "https://huggingface.co"
_YES = ("1", "ON", "YES", "TRUE")
"""The values of HF_HUB_OFFLINE that mean yes, in any case."""
_PATIENCE = Patience()


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine."""

    entry: Pretrained
    path: Path
    sha256: str


def fetch_weights(tag: str, *, offline: bool = False, patience: Patience = _PATIENCE) -> Fetched:
    """Download a checkpoint into the folder of weights, unless it is there already.

    A copy in Hugging Face's cache, which timm and transformers fill, is used as it is. The
    variables HF_ENDPOINT (a mirror), HF_TOKEN, HF_HOME and HF_HUB_OFFLINE have the meaning that
    Hugging Face gives them. A file that has been downloaded here before is compared with the
    digest that was recorded then.

    Args:
        tag: a tag of the catalogue.
        offline: raise an error instead of using the network.
        patience: how long to wait for the server, and how often to try again.

    Raises:
        UserError: the tag is unknown, the file cannot be had or is not the checkpoint that the tag
            names, or the disk is full. The message says how to bring the file by hand.
    """
    entry = entry_of(tag)
    found = find_cached(entry)
    if found is not None:
        sha256 = _check(entry, found)
        if _recorded_sha256(found) not in (None, sha256):
            raise UserError(
                f"'{found}' has changed since it was downloaded (its sha256 is {sha256} now): "
                "remove it, and run the same command again."
            )
        return Fetched(entry, found, sha256)
    target = own_path(entry)
    _check_can_fetch(entry, target, offline)
    file = File(
        url=address_of(entry),
        checksum=Checksum("sha256", entry.sha256) if entry.sha256 else None,
        # No server but the hub may see the user's token.
        token=_token() if entry.repository else None,
    )
    fetch([file], target.parent, patience)
    try:
        sha256 = _check(entry, target)
    except UserError as error:
        wrong = target.with_name(f"{target.name}.wrong")
        target.replace(wrong)
        raise UserError(
            f"'{file.url}' did not send the weights of '{tag}': {error} The file is set aside as "
            f"'{wrong}'. Does a proxy or the login page of a network answer instead?"
        ) from None
    with disk(target.parent):
        record = {"url": file.url, "size": target.stat().st_size, "sha256": sha256}
        write_json(target.parent / RECORD, record)
    return Fetched(entry, target, sha256)


def address_of(entry: Pretrained) -> str:
    """The address of the file of a checkpoint, on the mirror that HF_ENDPOINT names, if any."""
    if entry.url is not None:
        return entry.url
    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    return f"{endpoint}/{entry.repository}/resolve/main/{entry.filename}"


def _check_can_fetch(entry: Pretrained, target: Path, offline: bool) -> None:
    """Raise `UserError` with instructions if the file has to be brought by hand."""
    url = address_of(entry)
    # Made in any case, so that the instructions below work as they are.
    with disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        raise UserError(
            f"'{entry.tag}' is not on this machine, and the network is not to be used: download "
            f"{url} elsewhere and put it at '{target}'."
        )


def _token() -> str | None:
    """The user's token of the hub: HF_TOKEN, or what `hf auth login` has stored."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    try:
        stored = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
        return stored.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _recorded_sha256(path: Path) -> str | None:
    """The digest at the time of the download; None for a file that came in another way."""
    try:
        return json.loads((path.parent / RECORD).read_bytes())["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check(entry: Pretrained, path: Path) -> str:
    """Check that a file is the checkpoint that its tag names, and return its digest.

    Raises `UserError` if it cannot be read, lacks a parameter, or has another shape.
    """
    weights = read_file(path, entry.metadata())
    # Building checks every leaf.
    weights.build()
    config = weights.config()
    found = {name: getattr(config, name) for name in ("dim", "depth", "patch", "image")}
    expected = {name: getattr(entry, name) for name in found}
    if found != expected:
        raise UserError(f"'{path}' holds a ViT of {found}; '{entry.tag}' has {expected}.")
    if entry.sha256 not in (None, weights.sha256):
        raise UserError(f"'{path}' has the sha256 {weights.sha256}, expected {entry.sha256}.")
    return weights.sha256
