"""`promptax data`: from the publisher's server to a prepared set, and whatever users get wrong."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image
from webserver import serve

from promptax.cli import main
from promptax.cli.data import COMMANDS
from promptax.core.errors import UserError
from promptax.data.bundled import bundled_set
from promptax.data.catalog import CATALOG, Checksum
from promptax.data.location import data_dir, open_dataset
from promptax.runs.inputs import Data

PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "cifar10": archives.cifar,
    "cifar100": partial(archives.cifar, classes=100),
    "mnist": archives.idx,
    "fashion-mnist": archives.idx,
    "svhn": archives.svhn,
    "notmnist": archives.notmnist,
    "core50": archives.core50,
    "imagenet-r": archives.imagenet_r,
    "domainnet": archives.domainnet,
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory of its own, and a data folder in it that is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTAX_DATA", "data")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def answer(capsys, *argv):
    assert main(["data", *argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys, *argv):
    code = main(["data", *argv])
    out, err = capsys.readouterr()
    assert code == 2, out
    assert err.startswith("promptax: ")
    assert 1 <= err.count("\n") <= 3, err
    assert len(err) < 600, err
    return err


def publish(web, name, monkeypatch, checksum=None):
    """Put a web server in the place of the one in the catalog."""
    files = tuple(
        dataclasses.replace(file, url=f"{web.url}/{file.name}", checksum=checksum, size=None)
        for file in CATALOG[name].files
    )
    monkeypatch.setitem(CATALOG, name, dataclasses.replace(CATALOG[name], files=files))


def made(name):
    """A small set as it is published, and its files by their path on a server."""
    folder = Path(f"made-{name}")
    folder.mkdir()
    PUBLISHED[name](folder)
    return folder, {f"/{file.name}": file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def own(place):
    """A set of class folders, prepared as `flowers`."""
    archives.image_folder(place)
    assert main(["data", "prepare", "flowers", "set", "--format", "folder", "--size", "8"]) == 0
    return place / "data" / "flowers"


def test_everything_that_can_be_fetched_is_published_in_a_test():
    assert set(PUBLISHED) == {name for name, entry in CATALOG.items() if entry.files}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_catalog_fetches_is_what_its_format_prepares(name, monkeypatch, capsys):
    _, files = made(name)
    with serve(files) as web:
        publish(web, name, monkeypatch)
        out = answer(capsys, "fetch", name, "--prepare")
    assert CATALOG[name].licence in out
    assert "prepared: data/" + name in out
    dataset = open_dataset(name)
    train, test = len(dataset.train.labels), len(dataset.test.labels)
    assert f"({train} training and {test} test images, {len(dataset.class_names)} classes)" in out
    shown = answer(capsys, "info", name, "--grid", "grid.png")
    assert dataset.sha256 in shown
    with Image.open("grid.png") as grid:
        assert grid.width > 100
    assert all(group in shown for group in dataset.group_names)
    assert dataset.sha256 in answer(capsys, "verify", name)


def test_fetch_and_prepare_in_two_steps(monkeypatch, capsys):
    _, files = made("svhn")
    row = lambda: next(x for x in answer(capsys, "list").splitlines() if x.startswith("svhn"))
    assert row().split()[1] == "-"
    with serve(files) as web:
        publish(web, "svhn", monkeypatch)
        out = answer(capsys, "fetch", "svhn", "--data-dir", "data")
    assert "now run: promptax data prepare svhn --data-dir data" in out
    assert row().split()[1] == "downloaded"
    assert "run `promptax data prepare svhn`" in refusal(capsys, "info", "svhn")
    assert "look at it: promptax data info svhn" in answer(capsys, "prepare", "svhn")
    assert row().split()[1] == "prepared"


def test_a_wrong_checksum_ends_with_a_line(monkeypatch, capsys):
    _, files = made("svhn")
    with serve(files) as web:
        publish(web, "svhn", monkeypatch, Checksum("md5", "0" * 32))
        assert "train_32x32.mat.wrong" in refusal(capsys, "fetch", "svhn", "--prepare")
    assert not Path("data/svhn").exists()
    assert "svhn           half downloaded" in answer(capsys, "list")


def test_list_shows_own_sets_licences_and_where_they_are(own, capsys):
    out = answer(capsys, "list")
    assert "data sets, in data" in out
    assert re.search(r"split-glyphs +10 of new classes +glyphs +yes", out)
    assert re.search(r"split-cifar100 +10 of new classes +cifar100 +needs cifar100", out)
    assert "flowers" in out
    assert "your own" in out
    assert all(entry.licence in out for entry in CATALOG.values())


def test_info_counts_every_image(own, capsys):
    assert "bird 5/2" in answer(capsys, "info", "flowers")


def test_info_names_the_folder_and_a_command_that_trains(own, place, capsys):
    shown = answer(capsys, "info", "flowers", "--data-dir", "data")
    assert f"flowers: {own}" in shown
    command = shown.partition("train on it: promptax ")[2].splitlines()[0]
    assert command == "train l2p --data.stream flowers --data.tasks 1 --data-dir data"
    assert len(Data("flowers", tasks=1).load().tasks) == 1
    archives.core50(place)
    answer(capsys, "prepare", "core50", "core50_128x128.zip")
    assert "--data.stream core50 --data.kind" not in answer(capsys, "info", "core50")


def test_info_describes_what_comes_with_the_package(place, capsys):
    out = answer(capsys, "info", "split-glyphs", "--sample", "letter.png")
    assert "10: task 1, task 2," in out
    assert "glyphs: comes with the package" in out
    assert "10000 training, 3000 test" in out
    pixels = bundled_set("glyphs").test.images[..., 0]
    with Image.open("letter.png") as image:
        assert (pixels == np.asarray(image)).all((1, 2)).any()
    domains = answer(capsys, "info", "glyph-domains")
    assert "comes with the package" in domains


def test_the_sample_is_nearer_to_its_class_than_to_others(place, capsys):
    out = answer(capsys, "info", "split-fashion-mnist", "--sample", "boot.png")
    assert out.splitlines()[-1] == "sample: boot.png (Ankle boot)"
    sets = bundled_set("small-fashion-mnist")
    with Image.open("boot.png") as image:
        sample = np.asarray(image, float)[..., None]
    means = [
        sets.train[np.flatnonzero(sets.train.labels == label)].mean(0)
        for label in range(len(sets.class_names))
    ]
    own, *others = np.sort([np.square(sample - mean).sum() for mean in means])
    assert sets.class_names[np.argmin([np.square(sample - m).sum() for m in means])] == "Ankle boot"
    assert own < 0.4 * others[0]


def test_info_counts_by_class_and_group(capsys):
    archives.arrays(Path())
    answer(capsys, "prepare", "grouped", "arrays.npz", "--format", "arrays")
    dataset = open_dataset("grouped")
    rows = [line.split() for line in answer(capsys, "info", "grouped").splitlines()]
    for number, name in enumerate(dataset.class_names):
        cells = [
            "/".join(
                str(np.sum((part.labels == number) & (part.groups == group)))
                for part in (dataset.train, dataset.test)
            )
            for group in range(len(dataset.group_names))
        ]
        assert [name, *cells] in rows


def test_the_grid_shows_the_images_themselves(own, capsys):
    answer(capsys, "info", "flowers", "--grid", "grid.png", "--per-class", "2")
    with Image.open("grid.png") as file:
        grid = np.asarray(file)
    dataset = open_dataset("flowers")
    first = np.repeat(np.repeat(dataset.train[np.array([0])][0], 8, 0), 8, 1)
    left = grid.shape[1] - 2 * 68
    assert np.array_equal(grid[:64, left : left + 64], first)
    assert grid.shape[0] == 2 * 68


def test_verify_names_the_file_that_changed(own, capsys):
    file = own / "test.images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "test.images.npy" in refusal(capsys, "verify", "flowers")


def test_damaged_images_are_refused_or_skipped_and_shown(place, capsys):
    folder = archives.image_folder(place)
    (folder / "train" / "cat" / "9.jpg").write_bytes(b"no image")
    prepare = ["prepare", "flowers", "set", "--format", "folder"]
    assert "9.jpg" in refusal(capsys, *prepare)
    answer(capsys, *prepare, "--skip-damaged")
    out = answer(capsys, "info", "flowers")
    assert "skipped    1 damaged" in out
    assert "train/cat/9.jpg" in out


def test_a_published_split_of_imagenet_r(place, capsys):
    archive = archives.imagenet_r(place)
    Path("train.txt").write_text("n01443537/art_0.jpg\nn01484850/art_1.jpg\nn02009912/art_1.jpg\n")
    Path("test.txt").write_text("n01443537/art_4.jpg\n")
    lists = ["--train-list", "train.txt", "--test-list", "test.txt"]
    answer(capsys, "prepare", "imagenet-r", str(archive), *lists)
    dataset = open_dataset("imagenet-r")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (3, 1)
    assert dataset.split == "lists"
    assert "split      lists" in answer(capsys, "info", "imagenet-r")


def test_the_data_folder_is_the_flag_the_variable_or_the_cache(place, monkeypatch):
    home = {"linux": ".cache", "darwin": "Library/Caches", "win32": "AppData/Local"}
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(place))
    assert data_dir(Path("given")) == Path("given")
    assert data_dir(Path("~/given")) == place / "given"
    assert data_dir() == Path("data")
    for unset in (lambda: monkeypatch.setenv("PROMPTAX_DATA", ""), monkeypatch.undo):
        unset()
        monkeypatch.setenv("HOME", str(place))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        for platform, folder in home.items():
            monkeypatch.setattr(sys, "platform", platform)
            assert data_dir() == place / folder / "promptax"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert data_dir() == Path("/elsewhere/promptax")


def test_a_set_that_is_not_there_is_an_error_with_the_command_to_run(own):
    assert open_dataset("flowers").class_names == ("bird", "cat")
    for name, words in {
        "cifar10": "promptax data fetch cifar10 --prepare",
        "imagenet": "promptax data prepare imagenet PATH",
        "flower": "did you mean 'flowers'",
        "a/b": "cannot be the name",
    }.items():
        with pytest.raises(UserError, match=words):
            open_dataset(name)


ROWS = {
    "fetch": "Missing NAME",
    "fetch cifar": "'cifar' 'cifar10'",
    "fetch cifar/10": "'cifar/10' 'cifar10'",
    "fetch imagenet": "account image-net.org prepare imagenet PATH",
    "fetch svhn --data-dir file": "'file' is a file --data-dir",
    "fetch svhn --data-dir file/below": "file Not a directory",
    "fetch svhn --force": "--force",
    "prepare svhn": "promptax data fetch svhn",
    "prepare --size 3": "which set",
    "prepare svhn none.mat": "'none.mat' not found",
    "prepare svhn notes": "'notes",
    "prepare svhn file": "file/train_32x32.mat",
    "prepare cifar10 file": "'file' of another format",
    "prepare core50 cifar-10-python.tar.gz": "cifar-10-python.tar.gz",
    "prepare cifar100 cifar-10-python.tar.gz": "cifar-10-python.tar.gz meta",
    "prepare imagenet-r cifar-10-python.tar.gz": "n01443537/art_0.jpg",
    "prepare domainnet notes": "notes not found",
    "prepare imagenet": "account Give its path",
    "prepare mine": "not in the catalog --format folder",
    "prepare mine notes --format foldr": "format 'foldr' 'folder'",
    "prepare mine --format folder": "'mine' not in the catalog path",
    "prepare mine none --format folder": "'none' not found",
    "prepare mine notes --format folder": "notes",
    "prepare my/set notes --format folder": "'my/set' cannot be the name of a data set",
    "prepare ../set notes --format folder": "'../set' cannot be the name",
    "prepare .. notes --format folder": "'..' cannot be the name",
    "prepare downloads notes --format folder": "'downloads' cannot be the name",
    "prepare mine.partial notes --format folder": "'mine.partial' cannot be the name",
    "prepare svhn notes --train-list a.txt": "--train-list",
    "prepare cifar10 cifar-10-python.tar.gz --size 0": "size 0",
    "prepare cifar10 cifar-10-python.tar.gz --size big": "--size big",
    "prepare cifar10 cifar-10-python.tar.gz --data-dir file": "'file' is a file",
    "prepare cifar10 cifar-10-python.tar.gz --data-dir file/below": "file Not a directory",
    "info cifar10": "not prepared fetch cifar10 --prepare",
    "info cifar": "data set 'cifar' 'cifar10'",
    "info ../notes": "'../notes' cannot be the name",
    "info half": "not prepared same command",
    "info empty": "empty meta.json",
    "info text": "text meta.json damaged",
    "info cifar10 --per-class 0": "per class 0",
    "verify none": "data set 'none'",
    "verify": "Missing NAME",
    "list --data-dir file": "'file' is a file",
    "list cifar10": "cifar10",
    "lst": "'lst' 'list'",
    "--data-dir file": "list, fetch, prepare, info, verify",
}


@pytest.mark.parametrize(("line", "words"), ROWS.items(), ids=ROWS)
def test_bad_input_is_answered_in_a_line_or_two(line, words, place, capsys):
    archives.cifar(place)
    (place / "file").write_text("not a folder")
    (place / "notes").mkdir()
    for name in ("half.partial", "empty", "text"):
        (place / "data" / name).mkdir(parents=True)
    (place / "data" / "text" / "meta.json").write_text("once upon a time")
    err = refusal(capsys, *line.split())
    assert [word for word in words.split() if word not in err] == [], err


def test_a_picture_that_cannot_be_written(own, capsys):
    assert "'none/grid.png'" in refusal(capsys, "info", "flowers", "--grid", "none/grid.png")
    assert "grid.xyz" in refusal(capsys, "info", "flowers", "--grid", "grid.xyz")


def test_a_set_that_is_there_is_said_to_be_prepared_already(own, capsys):
    same = ["prepare", "flowers", "set", "--format", "folder", "--size", "8"]
    assert answer(capsys, *same).startswith("already prepared: ")
    assert "(--overwrite prepares it again)" in answer(capsys, *same)
    assert answer(capsys, *same, "--overwrite").startswith("prepared: ")


def test_another_set_under_the_same_name_is_refused(own, capsys):
    archives.folder(own.parents[1] / "other", archives.class_files(each=9))
    err = refusal(capsys, "prepare", "flowers", "other", "--format", "folder", "--size", "8")
    assert "was prepared from 'set', and not from 'other'. Prepare it again with --overwrite" in err


def test_help_of_every_command(capsys):
    for argv in ((), ("--help",), ("prepare", "--help"), ("prepare",)):
        assert "usage: promptax data" in answer(capsys, *argv)
    for command in ["list", "fetch", "info", "verify", "prepare mine --format folder"]:
        with pytest.raises(SystemExit) as stop:
            main(["data", *command.split(), "--help"])
        assert not stop.value.code
        assert f"promptax data {command.partition(' --')[0]}" in capsys.readouterr().out
    assert set(COMMANDS) == {"list", "fetch", "prepare", "info", "verify"}


def test_list_and_fetch_import_no_jax(place):
    code = "import sys, promptax.cli as c; c.main(['data', 'list']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "promptax.data.fetch" in done.stdout
    assert not {"jax", "grain", "matplotlib"} & set(done.stdout.split())


FETCH = """
import json, sys
from promptax.cli import main
from promptax.data import catalog
from promptax.data.catalog import Entry, File
catalog.CATALOG["tiny"] = Entry("Tiny", "folder", "none", "http://a.b", (File(sys.argv[1]),))
raise SystemExit(main(["data", "fetch", "tiny"]))
"""


def test_ctrl_c_keeps_what_has_come(place):
    with serve({"/set.zip": bytes(3_000_000)}, stall=0.05) as web:
        command = [sys.executable, "-c", FETCH, f"{web.url}/set.zip"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        part, end = Path("data/downloads/tiny/set.zip.part"), time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b"promptax: interrupted. The same command goes on where it ended.\n"
    assert 0 < part.stat().st_size < 3_000_000


def test_meta_of_a_prepared_set_says_what_it_was_made_from(own, capsys):
    stored = json.loads((own / "meta.json").read_text())
    assert f"made from  {stored['made_from']['format']}" in answer(capsys, "info", "flowers")
