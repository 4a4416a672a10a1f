"""Folders, zips and tars: none of them can be trusted."""

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
