"""Folders, zips and tars: none of them can be trusted."""

import lzma
import shutil
import tarfile
import zipfile
from pathlib import Path

import archives
import pytest

from promptax.core.errors import UserError
from promptax.data.archive import open_tree


def member(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return path


@pytest.mark.parametrize(
    "name", ["/etc/x.png", "../x.png", "a/../../x.png", "C:\\x.png", "a\\..\\..\\x"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name, kind):
    path = tmp_path / "a"
    if kind == "tar":
        member(path, name)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"")
    with pytest.raises(UserError, match="leads out of it"):
        open_tree(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with pytest.raises(UserError, match="refused"):
        open_tree(member(tmp_path / "a.tar", "a/b.png", kind, "/etc/passwd"))


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a/b.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="a link"):
        open_tree(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_and_one_with_a_line_break_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("a.png", b"2")
    with pytest.raises(UserError, match="twice"):
        open_tree(tmp_path / "a.zip")
    with pytest.raises(UserError, match="line break"):
        open_tree(member(tmp_path / "a.tar", "a\nb.png"))


def test_a_tar_that_is_cut_between_two_files_is_not_taken_for_a_whole_one(tmp_path):
    path = archives.tar(tmp_path / "a.tar", {f"{n}.png": bytes(512) for n in range(4)})
    path.write_bytes(path.read_bytes()[: 4 * 512])
    with pytest.raises(UserError, match="cut off"):
        open_tree(path)


def test_links_in_a_folder_are_followed_but_never_in_a_circle(tmp_path):
    path = archives.image_folder(tmp_path)
    (path / "train" / "cat" / "loop").symlink_to(path)
    shutil.move(path / "train" / "bird", tmp_path / "bird")
    (path / "train" / "bird").symlink_to(tmp_path / "bird")
    assert sum(name.startswith("train/bird") for name in open_tree(path).names) == 6


@pytest.mark.parametrize("pack", [archives.zipped, archives.tar])
def test_parts_of_names_that_mean_nothing_are_no_hidden_folders(tmp_path, pack, caplog):
    files = {"./a/1.png": b"1", "a/./2.png": b"2", "a//3.png": b"3", ".a/4.png": b"4"}
    with caplog.at_level("INFO", logger="promptax"):
        tree = open_tree(pack(tmp_path / "x", files))
    assert sorted(tree.names) == ["a/1.png", "a/2.png", "a/3.png"]
    assert dict(zip(tree.names, tree.read(tree.names), strict=True)) == {
        f"a/{n}.png": str(n).encode() for n in (1, 2, 3)
    }
    assert "hidden files are left out, such as '.a/'" in caplog.text


def test_several_streams_of_xz_are_one_file(tmp_path):
    content = archives.tar(tmp_path / "a", {"a/1.png": bytes(range(256)) * 100}).read_bytes()
    half = len(content) // 2
    streams = [lzma.compress(content[:half]), bytes(8), lzma.compress(content[half:]), bytes(4)]
    (tmp_path / "a.tar.xz").write_bytes(b"".join(streams))
    tree = open_tree(tmp_path / "a.tar.xz")
    assert list(tree.read(["a/1.png"])) == [bytes(range(256)) * 100]


def test_a_limit_is_raised_by_its_variable(tmp_path, monkeypatch):
    path = archives.zipped(tmp_path / "a.zip", {"a/1.png": bytes(2000)})
    for text, allowed in (("1kB", False), ("1.9 kB", False), ("2kB", True), ("2KiB", True)):
        monkeypatch.setenv("PROMPTAX_MAX_FILE", text)
        if allowed:
            assert list(open_tree(path).read(["a/1.png"])) == [bytes(2000)]
        else:
            with pytest.raises(UserError, match=r"a/1\.png.* set PROMPTAX_MAX_FILE to a larger"):
                list(open_tree(path).read(["a/1.png"]))
    for text in ("much", "-1", "1e9", "2XB"):
        monkeypatch.setenv("PROMPTAX_MAX_FILE", text)
        with pytest.raises(UserError, match=r"PROMPTAX_MAX_FILE is .* such as 500MB"):
            list(open_tree(path).read(["a/1.png"]))
