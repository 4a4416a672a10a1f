"""Fetch files over HTTP: resume broken downloads, and check what was downloaded."""

import hashlib
import http
import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from promptax.core.errors import UserError
from promptax.core.files import open_file, read_text, require_space
from promptax.core.text import format_bytes
from promptax.data.catalog import File
from promptax.data.storage import disk, locked

CHUNK = 2**20
"""Most bytes that are read at a time. Fewer are written as they come on a slow connection."""

MOST_BYTES = 10**12
"""Most bytes of a file whose size is not in the catalog."""
SIZE_MARGIN = 2
"""A file may have this many times the size in the catalog, which can be rounded."""

PASSING = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)
"""Errors that HTTP blames on the client, but that pass with time."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """The waiting times and the number of attempts of a download."""

    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""
    attempts: int = 5
    """Attempts in a row without a single byte, before giving up."""
    backoff: float = 1.0
    """Seconds before the second attempt; they are doubled with every failure in a row."""


def fetch(files: Sequence[File], folder: Path, patience: Patience = Patience()) -> list[Path]:
    """Fetch files into a folder, through the proxy of the environment if there is one.

    The bytes of a broken download stay in `NAME.part`, and the next call resumes from there if the
    server still has the same file. Files that are there already are checked, and not fetched.

    Raises `UserError` if a file cannot be fetched, has a wrong checksum (it is then renamed to
    `NAME.wrong`) or does not fit on the disk, or if another process fetches into the folder.
    """
    with disk(folder), locked(folder):
        folder.mkdir(exist_ok=True)
        missing = [file for file in files if not (folder / file.name).is_file()]
        expected = sum(file.size or 0 for file in missing)
        received = sum(_Part(folder / file.name).size for file in missing)
        _check_space(folder, expected - received)
        return [_fetch(file, folder / file.name, patience) for file in files]


def is_fetched(files: Sequence[File], folder: Path) -> bool:
    """Whether all files are in the folder. Their contents are not checked."""
    return all((folder / file.name).is_file() for file in files)


def _fetch(file: File, target: Path, patience: Patience) -> Path:
    if target.is_file():
        _check(file, target, target)
        _LOG.info("%s: already there", file.name)
        return target
    part = _Part(target)
    _download(file, part, patience)
    _check(file, part.path, target)
    part.path.replace(target)
    part.discard()
    if file.checksum is None:
        sha256 = _digest(target, "sha256")
        _LOG.info("%s: sha256 %s (none is published: note it to compare)", file.name, sha256)
    return target


@dataclass(frozen=True)
class _Part:
    """The bytes of a file that were received so far.

    The server's mark of the file's version (`_mark`) is kept beside them, so that a download is
    not resumed with the bytes of another version.
    """

    target: Path
    """The file when it is complete."""

    @property
    def path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def mark(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.mark")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def headers(self) -> dict[str, str]:
        """The headers that ask for the rest of the file, if it is still the same version.

        Without a mark the server could not tell, and is asked for the whole file.
        """
        mark = read_text(self.mark, "mark of a download") if self.mark.is_file() else ""
        if not mark or not self.size:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": mark}

    def restart(self, mark: str) -> None:
        """Start from the first byte, of the version that `mark` stands for."""
        # The bytes first: the mark must never stand beside bytes of another version.
        self.path.unlink(missing_ok=True)  # what stands there may be a named pipe
        self.path.touch()
        self.mark.write_text(mark)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def _download(file: File, part: _Part, patience: Patience) -> None:
    """Receive the rest of a file in as many attempts as it takes."""
    url = file.url
    failures = 0
    while True:
        before = part.size
        try:
            if _attempt(file, part, patience.timeout):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            if _is_whole(error, part):
                return
            reason = _answer(error, url, part)
        except (OSError, http.client.HTTPException) as error:
            reason = _explain(error, url)
        failures = 0 if part.size > before else failures + 1
        if failures == patience.attempts:
            raise UserError(
                f"'{url}' cannot be fetched: {reason}. What has come is kept: run the same command "
                "again (a proxy is taken from HTTP_PROXY and HTTPS_PROXY), or put "
                f"'{part.target.name}' into '{part.target.parent}' yourself."
            )
        _LOG.info("%s: %s; trying again", part.target.name, reason)
        time.sleep(patience.backoff * 2 ** max(failures - 1, 0))


def _attempt(file: File, part: _Part, timeout: float) -> bool:
    """Receive the rest of the file, or all of it. Returns whether it is complete."""
    headers = {"User-Agent": "promptax", **part.headers()}
    request = urllib.request.Request(file.url, headers=headers)
    if file.token is not None:
        # Unredirected, since the server may send us to another one, which must not get the token.
        request.add_unredirected_header("Authorization", f"Bearer {file.token}")
    # A new opener reads the proxies of the environment; the default one keeps the first it saw.
    with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as response:
        start, total = _span(response)
        if total is not None and total > _most_bytes(file):
            raise _too_long(file)
        if start not in (0, part.size):  # not what was asked for: start again
            part.discard()
            return False
        _check_space(part.target.parent, (total or 0) - start)
        if start == 0:
            part.restart(_mark(response))
        _copy(response, part, total, file)
    return total is None or part.size == total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another one, but not to an address that is less safe."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request to the new address. Raises `UserError` if it is not followed."""
        old = urllib.parse.urlsplit(req.full_url)
        new = urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise UserError(
                f"'{req.full_url}' cannot be fetched: the server leads from {old.scheme} to "
                f"{new.scheme} ('{newurl}'), which is not followed. Is there a proxy or a login "
                "page in between?"
            )
        if new.hostname != old.hostname:
            _LOG.info("%s sends us to %s", old.hostname, new.hostname)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _most_bytes(file: File) -> int:
    """The most bytes that a server may send: sizes in the catalog can be rounded."""
    return MOST_BYTES if file.size is None else SIZE_MARGIN * file.size


def _too_long(file: File) -> UserError:
    return UserError(
        f"'{file.url}' sends more than {format_bytes(_most_bytes(file))}, which cannot be the "
        "file that was asked for. Is there a proxy or a login page in between?"
    )


def _span(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The position in the file at which the response starts, and the size of the file.

    The position is -1 if the server's answer cannot be understood, and the size is None if it does
    not tell it.
    """
    if response.status == http.client.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(span[1]), int(span[2])) if span else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _mark(response: http.client.HTTPResponse) -> str:
    """The server's mark of a version of the file, for the header `If-Range`.

    It is a strong ETag or else a date (RFC 9110, section 13.1.5).
    """
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _copy(response: http.client.HTTPResponse, part: _Part, total: int | None, file: File) -> None:
    """Append what comes to the part; `total` is the size of the whole file, if it is known."""
    received = part.size
    shown = {"desc": part.target.name, "unit": "B", "unit_scale": True, "disable": None}
    with (
        part.path.open("ab") as output,
        tqdm(total=total, initial=part.size, **shown) as progress,
    ):
        while chunk := response.read1(CHUNK):
            received += len(chunk)
            if received > _most_bytes(file):
                raise _too_long(file)
            _write(output, chunk)
            progress.update(len(chunk))


def _write(file, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        # Turned into another error here, because `_download` takes an OSError for the network's.
        raise UserError(f"'{file.name}' cannot be written: {error.strerror}.") from None


def _is_whole(error: urllib.error.HTTPError, part: _Part) -> bool:
    """Whether an error only says that the whole file was received already.

    That happens if the last run was stopped after the last byte.
    """
    return (
        error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        and error.headers.get("Content-Range") == f"bytes */{part.size}"
    )


def _answer(error: urllib.error.HTTPError, url: str, part: _Part) -> str:
    """The reason of a failure after which another attempt can succeed.

    Raises `UserError` after any other.
    """
    reason = f"the server answers {error.code} {error.reason}".rstrip()
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.discard()  # more bytes than the file has: they are of another version
    elif error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in PASSING:
        raise UserError(
            f"'{url}' cannot be fetched: {reason}. If you have '{part.target.name}' from "
            f"elsewhere, put it into '{part.target.parent}' and run the same command again."
        )
    return reason


def _explain(error: Exception, url: str) -> str:
    """The reason why there was no answer. Raises `UserError` if another attempt cannot help."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise UserError(
            f"'{url}' cannot be fetched: the server's certificate is not accepted "
            f"({cause.verify_message}). If there is a proxy in between, name the file of its "
            "certificate in SSL_CERT_FILE."
        )
    return str(cause) or type(cause).__name__


def _check(file: File, path: Path, target: Path) -> None:
    if file.checksum is None:
        return
    found = _digest(path, file.checksum.algorithm)
    if found == file.checksum.value:
        return
    wrong = target.with_name(f"{target.name}.wrong")
    path.replace(wrong)
    _Part(target).discard()
    raise UserError(
        f"'{file.url}' has a wrong checksum ({file.checksum.algorithm} {found}, expected "
        f"{file.checksum.value}): set aside as '{wrong}', not used. Run the same command again."
    )


def _digest(path: Path, algorithm: str) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


def _check_space(folder: Path, needed: int) -> None:
    remedy = "make room, or give another folder with Data(dir=...)"
    require_space(folder, needed, "the rest of the download", remedy)
