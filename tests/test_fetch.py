"""Downloads over a network that fails, and the catalog of what can be fetched."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webserver import serve

from promptax.core.errors import UserError
from promptax.data.catalog import CATALOG, Checksum, File
from promptax.data.fetch import Patience, _Redirects, fetch, is_fetched

CONTENT = np.random.default_rng(0).bytes(300_000)
HURRY = Patience(timeout=5.0, attempts=3, backoff=0.0)
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
MD5 = Checksum("md5", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def serve_one(**faults):
    return serve({"/set.zip": CONTENT}, **faults)


def get(web, folder, checksum: Checksum | None = SHA256, path="/set.zip", patience=HURRY):
    (found,) = fetch([File(web.url + path, checksum)], folder, patience)
    return found.read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checksum", [SHA256, MD5, None])
def test_a_file_is_fetched_once(checksum, tmp_path):
    with serve_one() as web:
        assert get(web, tmp_path, checksum) == CONTENT
        assert get(web, tmp_path, checksum) == CONTENT
        assert web.asked == [("/set.zip", "")]
    assert names(tmp_path) == ["set.zip"]


def test_without_a_checksum_the_digest_is_told(tmp_path, caplog):
    with serve_one() as web, caplog.at_level("INFO"):
        get(web, tmp_path, None)
    assert SHA256.value in caplog.text


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 90_000), max_size=6))
def test_a_cut_connection_goes_on_where_it_ended(cuts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    starts = np.cumsum([0, *cuts])
    if starts[-1] >= len(CONTENT):
        cuts, starts = [], starts[:1]
    with serve_one(cuts=list(cuts)) as web:
        assert get(web, folder) == CONTENT
        ranges = [f"bytes={start}-" if start else "" for start in starts]
        assert [asked for _, asked in web.asked] == ranges


def test_a_server_without_ranges_starts_again(tmp_path):
    with serve_one(ranges=False, cuts=[100_000]) as web:
        assert get(web, tmp_path) == CONTENT
        assert web.asked[1] == ("/set.zip", "bytes=100000-")


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(tmp_path):
    with serve_one(ranges=False, cuts=[100_000] * 50) as web:
        with pytest.raises(UserError, match=r"connection was cut.*same command"):
            get(web, tmp_path)
        assert len(web.asked) == 1 + HURRY.attempts


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_mark_nothing_is_joined(etag, tmp_path):
    with serve_one(etag=etag, cuts=[100_000]) as web:
        assert get(web, tmp_path) == CONTENT
        assert [asked for _, asked in web.asked] == ["", ""]


def test_a_file_that_changed_meanwhile_starts_again(tmp_path):
    with serve_one(cuts=[100_000, 0, 0, 0]) as web:
        with pytest.raises(UserError, match=r"cut"):
            get(web, tmp_path)
        assert names(tmp_path) == ["set.zip.part", "set.zip.part.mark"]
        new = CONTENT[::-1]
        web.files["/set.zip"], web.etag = new, '"v2"'
        assert get(web, tmp_path, Checksum("md5", hashlib.md5(new).hexdigest())) == new
        assert web.asked[-1] == ("/set.zip", "bytes=100000-")


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_416_ends_a_complete_file_and_drops_one_that_is_too_long(length, tmp_path):
    (tmp_path / "set.zip.part").write_bytes((CONTENT + b"extra")[:length])
    (tmp_path / "set.zip.part.mark").write_text('"v1"')
    with serve_one() as web:
        assert get(web, tmp_path) == CONTENT
        assert web.asked[0] == ("/set.zip", f"bytes={length}-")
        assert len(web.asked) == 1 + (length > len(CONTENT))


def test_errors_that_pass_are_tried_again(tmp_path):
    with serve_one(errors=[503, 500]) as web:
        assert get(web, tmp_path) == CONTENT


@pytest.mark.parametrize("code", [403, 404, 410])
def test_errors_that_do_not_pass_are_told_at_once(code, tmp_path):
    with serve_one(errors=[code] * 9) as web:
        with pytest.raises(UserError, match=rf"{code} .*put it into '{re.escape(str(tmp_path))}'"):
            get(web, tmp_path)
        assert len(web.asked) == 1


def test_a_server_that_stays_broken_is_given_up(tmp_path):
    with serve_one(errors=[502] * 9) as web:
        with pytest.raises(UserError, match=r"502 Bad Gateway"):
            get(web, tmp_path)
        assert len(web.asked) == HURRY.attempts


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web = SimpleNamespace(url=f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(UserError, match=r"refused.*HTTPS_PROXY"):
            get(web, tmp_path)


def test_a_silent_server_counts_as_broken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        web = SimpleNamespace(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"timed out"):
            get(web, tmp_path, patience=Patience(timeout=0.1, attempts=2, backoff=0.0))


def test_a_wrong_checksum_sets_the_file_aside(tmp_path):
    with serve_one() as web:
        web.files["/set.zip"] = b"<html>sign in</html>"
        with pytest.raises(UserError, match=r"wrong checksum.*set[.]zip[.]wrong"):
            get(web, tmp_path)
        assert names(tmp_path) == ["set.zip.wrong"]
        web.files["/set.zip"] = CONTENT
        assert get(web, tmp_path) == CONTENT


def test_a_file_put_there_by_hand_is_checked(tmp_path):
    (tmp_path / "set.zip").write_bytes(CONTENT[:-1])
    with serve_one() as web:
        with pytest.raises(UserError, match=r"wrong checksum"):
            get(web, tmp_path)
        assert names(tmp_path) == ["set.zip.wrong"]
        assert web.asked == []


def test_a_redirect_is_followed_and_resumed(tmp_path):
    with serve_one(redirects={"/old.zip": "/set.zip"}, cuts=[50_000]) as web:
        assert get(web, tmp_path, path="/old.zip") == CONTENT
        assert web.asked[-1] == ("/set.zip", "bytes=50000-")
    assert names(tmp_path) == ["old.zip"]


def test_another_host_is_asked_and_named(tmp_path, caplog):
    with serve_one() as other, serve_one() as web, caplog.at_level("INFO", logger="promptax"):
        web.redirects["/old.zip"] = other.url.replace("127.0.0.1", "localhost") + "/set.zip"
        assert get(web, tmp_path, path="/old.zip") == CONTENT
        assert other.asked == [("/set.zip", "")]
    assert "127.0.0.1 sends us to localhost" in caplog.text


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://localhost/set.zip", "data:,x"])
def test_a_redirect_to_another_scheme_is_not_followed(address, tmp_path):
    with serve_one(redirects={"/old.zip": address}) as web:
        with pytest.raises(UserError, match=r"cannot be fetched: .*not (followed|allowed)"):
            get(web, tmp_path, path="/old.zip")
        assert len(web.asked) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize(("old", "followed"), [("http", True), ("https", False)])
def test_an_encrypted_connection_stays_one(old, followed):
    request = urllib.request.Request(f"{old}://a.org/x", headers={"User-Agent": "promptax"})
    handler: Any = _Redirects()
    redirect = lambda to: handler.redirect_request(request, None, 302, "", {}, to)
    assert redirect("https://b.org/x").full_url == "https://b.org/x"
    if followed:
        assert redirect("http://b.org/x").full_url == "http://b.org/x"
    else:
        with pytest.raises(UserError, match="from https to http"):
            redirect("http://b.org/x")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_sends_far_too_much_is_stopped(chunked, tmp_path):
    with serve_one(chunked=chunked) as web:
        small = File(f"{web.url}/set.zip", SHA256, 100_000)
        with pytest.raises(UserError, match=r"sends more than 200\.0 kB"):
            fetch([small], tmp_path, HURRY)
        assert len(web.asked) == 1


def test_a_named_pipe_in_the_place_of_a_download_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "set.zip.part")
    with serve_one() as web:
        assert get(web, tmp_path) == CONTENT


def test_chunks_without_a_length(tmp_path):
    with serve_one(chunked=True, cuts=[50_000]) as web:
        assert get(web, tmp_path) == CONTENT


def test_the_proxy_of_the_environment_is_asked(tmp_path, monkeypatch):
    with serve_one() as web:
        monkeypatch.setenv("http_proxy", web.url)
        far = SimpleNamespace(url="http://data.invalid")
        assert get(far, tmp_path) == CONTENT
        assert web.asked == [("http://data.invalid/set.zip", "")]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    with serve_one() as web:
        with pytest.raises(UserError, match=r"the rest of the download needs .*free"):
            get(web, tmp_path)
        assert names(tmp_path) == []
        sized = File(f"{web.url}/set.zip", SHA256, 10**9)
        with pytest.raises(UserError, match=r"the rest of the download needs 1\.0 GB"):
            fetch([sized], tmp_path, HURRY)


RUN = """
import sys
from pathlib import Path
from promptax.data.catalog import File
from promptax.data.fetch import fetch
fetch([File(sys.argv[1])], Path(sys.argv[2]))
"""


def test_a_second_process_is_told_of_the_first_and_goes_on_after_its_end(tmp_path):
    with serve_one(stall=0.05) as web:
        first = subprocess.Popen([sys.executable, "-c", RUN, f"{web.url}/set.zip", tmp_path])
        part, patience = tmp_path / "set.zip.part", time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"being filled by process {first.pid} on "):
            get(web, tmp_path)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        come = part.stat().st_size
        assert 0 < come < len(CONTENT)
        web.stall = 0
        assert get(web, tmp_path) == CONTENT
        assert web.asked == [("/set.zip", ""), ("/set.zip", f"bytes={come}-")]


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_is_fit_to_be_used(name):
    entry = CATALOG[name]
    assert entry.licence
    assert entry.homepage.startswith("http")
    assert bool(entry.files) != bool(entry.by_hand)
    assert len({file.name for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert re.fullmatch(r"https?://[\w.-]+/[\w./~-]+\.\w+", file.url)
        if file.checksum is not None:
            length = hashlib.new(file.checksum.algorithm).digest_size
            assert len(bytes.fromhex(file.checksum.value)) == length
            assert file.checksum.value == file.checksum.value.lower()


def test_only_complete_files_count_as_fetched(tmp_path):
    files = [File("http://a.b/c.zip"), File("http://a.b/d.txt")]
    (tmp_path / "c.zip").touch()
    (tmp_path / "d.txt.part").touch()
    assert is_fetched(files[:1], tmp_path)
    assert not is_fetched(files, tmp_path)
