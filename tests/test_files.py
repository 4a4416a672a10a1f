"""Files are read within bounds and replaced in one step; foreign text is escaped."""

import errno
import io
import json
import os
import socket
import struct
import zipfile

import numpy as np
import pytest

from promptax.core import files
from promptax.core.errors import UserError
from promptax.core.text import format_bytes, printable

READERS = {
    "bytes": files.read_bytes,
    "json": files.read_json,
    "npz": files.read_npz,
    "npy": files.map_npy,
    "digest": files.sha256_of,
}


def make(kind, path):
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_only_regular_files_are_opened(kind, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    make(kind, tmp_path / "x")
    with pytest.raises(UserError, match=f"x' is {kind}, but should be a regular file"):
        reader(tmp_path / "x")


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_missing_file_and_a_loop_of_links_are_named(reader, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, says in (
        ("none", "not found"),
        ("loop", "Too many levels"),
        ("a\0b", "no file name"),
    ):
        with pytest.raises(UserError, match=says):
            reader(tmp_path / name)


def test_a_large_json_file_is_refused_and_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert files.read_json(tmp_path / "a.json") == [1, 2, 3]
    monkeypatch.setenv("PROMPTAX_MAX_TEXT", "8")
    with pytest.raises(UserError, match=r"a\.json' is larger than 8 bytes.* PROMPTAX_MAX_TEXT"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_damaged_json_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^set '.*a\.json' is damaged: .* Prepare it again\.$"):
        files.read_json(tmp_path / "a.json", "set", "Prepare it again.")


def test_arrays_come_back_and_pickles_do_not(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array("text"), "c": np.zeros(0, np.uint8)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = files.read_npz(tmp_path / "a.npz")
        assert {name: array.tolist() for name, array in read.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="allow_pickle=False"):
        files.read_npz(tmp_path / "a.npz")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTAX_MAX_UNPACKED", "100kB")
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6, np.uint8))
    with pytest.raises(UserError, match=r"it takes 1\.0 MB of memory; at most \d"):
        files.read_npz(tmp_path / "a.npz")
    noise = np.random.default_rng(0).integers(0, 256, 10**6, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=noise)  # large in the file, too
    assert files.read_npz(tmp_path / "a.npz")["a"].shape == (10**6,)


def test_a_member_that_is_larger_than_the_archive_says_is_not_read_on(tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(10**6, np.uint8))
    content = bytearray(file.getvalue())
    # The size of the decompressed member, in the central directory.
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 1000)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        files.read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_refused(compression, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("a.npy", b"any")
    with pytest.raises(UserError, match="in a way that NumPy never uses"):
        files.read_npz(tmp_path / "a.npz")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_json(path, {"a": 2})
    assert error.value.filename == str(path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))


def test_a_pipe_in_the_place_of_the_draft_does_not_hang(tmp_path):
    os.mkfifo(files.draft_of(tmp_path / "a.json"))
    files.write_json(tmp_path / "a.json", 1)
    assert files.read_json(tmp_path / "a.json") == 1


def test_what_cannot_be_a_file_is_not_written(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, says in (("loop", "Too many levels"), ("a\0b", "no file name"), ("a" * 999, "long")):
        with pytest.raises(UserError, match=says):
            files.write_json(tmp_path / name, 1)


def test_a_file_of_the_users_is_no_draft(tmp_path):
    (tmp_path / "a.tmp").write_text("mine")
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.tmp").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_only_regular_files_are_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    make(kind, path)
    before = path.lstat()
    with pytest.raises(UserError, match=f"x' is {kind}"):
        files.write_json(path, 1)
    assert path.lstat() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_lock_is_held_once_and_tells_what_was_killed(tmp_path):
    path = tmp_path / "lock"
    with files.file_lock(path, "'x' is in use by") as left:
        assert left == ""
        again = files.file_lock(path, "'x' is in use by")
        with pytest.raises(UserError, match=f"'x' is in use by process {os.getpid()} on "), again:
            pass
    assert path.read_text() == ""
    path.write_text("process 1 on mars")
    with files.file_lock(path, "'x' is in use by") as left:
        assert left == "process 1 on mars"


def test_too_little_space_is_told_with_its_units(tmp_path):
    files.require_space(tmp_path / "not" / "yet" / "made", 1000, "it", "")
    with pytest.raises(UserError, match=r"^the set needs 1000\.0 PB at .* are free: make room\.$"):
        files.require_space(tmp_path, 10**18, "the set", "make room")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
        (OSError("of a library"), "of a library"),
        (ValueError(), "ValueError"),
        (ValueError("first\nsecond"), "first"),
    ],
)
def test_there_is_always_a_reason(error, says):
    assert files.reason(error) == says


def test_a_number_of_bytes_is_never_zero_gigabytes():
    sizes = (0, 999, 1000, 1_500_000, 12 * 10**9, 10**30)
    told = ["0 bytes", "999 bytes", "1.0 kB", "1.5 MB", "12.0 GB", "1000000000000000.0 PB"]
    assert [format_bytes(size) for size in sizes] == told


def test_what_commands_a_terminal_is_escaped_and_long_texts_are_cut():
    assert printable("ünï ☃\x1b[31m\r\n\x9b\u202e") == r"ünï ☃\x1b[31m\r\n\x9b\u202e"
    assert len(printable("x" * 5000)) < 600
    assert printable("x" * 5000, longest=None) == "x" * 5000
