"""Preparing a set: pixels, odd images, and every way in which it can be stopped or go wrong."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image

from promptax import data
from promptax.core.errors import UserError
from promptax.core.files import read_json, write_json
from promptax.data import prepare as module
from promptax.data.dataset import Dataset, Lines
from promptax.data.formats import Arrays, ImageFolder, ImageNetR
from promptax.data.image import decode
from promptax.data.prepare import prepare
from promptax.data.storage import locked


def bytes_of(folder: Path) -> dict[str, str]:
    """The digest of every file of a prepared set."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


@pytest.fixture
def many(tmp_path):
    """A folder of 40 images of two classes, and a set prepared from it."""
    path = archives.folder(tmp_path / "many", archives.class_files(each=20))
    return path, prepare(ImageFolder(), path, tmp_path / "whole", size=8)


# --- what is prepared ---


def test_images_have_the_pixels_that_pillow_gives_and_their_labels_and_names(tmp_path):
    files = archives.class_files("train/", 5) | archives.class_files("test/", 2)
    made = prepare(ImageFolder(), archives.folder(tmp_path / "x", files), tmp_path / "s", size=7)
    assert isinstance(made.train, data.Source)
    for part in (made.train, made.test):
        for image, label, name in zip(part.images, part.labels, part.names, strict=True):
            read = Image.open(io.BytesIO(files[name])).convert("RGB")
            expected = np.asarray(read.resize((7, 7), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(image, expected)
            assert made.class_names[label] in name
    assert not made.train.images.flags.writeable
    made.verify()


def test_the_digest_is_that_of_the_content_wherever_it_was_stored(tmp_path, many):
    path, whole = many
    archive = archives.zipped(tmp_path / "a.zip", archives.class_files("top/", 20))
    zipped = prepare(ImageFolder(), archive, tmp_path / "zipped", size=8)
    tar = archives.tar(tmp_path / "a.tgz", archives.class_files("./top/", 20), "w:gz")
    assert zipped.sha256 == whole.sha256
    assert prepare(ImageFolder(), tar, tmp_path / "tar", size=8).sha256 == whole.sha256
    assert prepare(ImageFolder(), path, tmp_path / "other", size=9).sha256 != whole.sha256


def test_pixels_are_resized_only_where_a_size_is_given(tmp_path):
    path = archives.arrays(tmp_path)
    stored = np.load(path)["train_images"]
    whole = prepare(Arrays(), path, tmp_path / "a")
    np.testing.assert_array_equal(whole.train.images, stored)
    small = prepare(Arrays(), path, tmp_path / "b", size=5)
    expected = Image.fromarray(stored[3]).resize((5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.train.images[3], np.asarray(expected))


def test_images_are_cut_instead_of_stretched_if_asked(tmp_path):
    images = [np.random.default_rng(n).integers(0, 256, (20, 30, 3), np.uint8) for n in range(2)]
    files = {}
    for part in ("train", "test"):
        for name, pixels in zip(("cat", "dog"), images, strict=True):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            files[f"{part}/{name}/1.png"] = file.getvalue()
    path = archives.folder(tmp_path / "x", files)
    options = {"keep_aspect": True, "interpolation": "bicubic"}
    made = prepare(ImageFolder(), path, tmp_path / "set", size=10, **options)
    for image, pixels in zip(made.train.images, images, strict=True):
        resized = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(resized)[:, 2:12])
    assert prepare(ImageFolder(), path, tmp_path / "set", size=10, **options).sha256 == made.sha256
    with pytest.raises(UserError, match="with keep_aspect True, and not the default"):
        prepare(ImageFolder(), path, tmp_path / "set", size=10)


def test_a_part_feeds_the_loader(many):
    part = many[1].train
    batches = data.TrainBatches(part, np.arange(len(part.labels)), 8, 2, (0, 0))
    for batch in data.read_ahead(batches):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            same = np.flatnonzero((part.images == image).all(axis=(1, 2, 3)))
            assert label in part.labels[same]


def test_images_of_unlike_sizes_need_a_size(tmp_path):
    files = archives.class_files("train/") | archives.class_files("test/")
    path = archives.folder(tmp_path / "x", files | {"train/bird/x.png": archives.encoded(5, 9)})

    class AsStored(ImageFolder):
        size = None

    with pytest.raises(UserError, match=r"bird/x\.png.*give a size"):
        prepare(AsStored(), path, tmp_path / "s")


# --- damaged images ---


def test_a_damaged_image_stops_the_work_or_is_left_out_counted_and_named(tmp_path, many):
    path, whole = many
    names = list(whole.train.names)
    for name in (names[0], names[17]):
        (path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{names[0]}.* no image of a known kind.*damaged='skip'"):
        prepare(ImageFolder(), path, tmp_path / "s", size=8)
    with pytest.raises(UserError, match="not completely prepared"):
        Dataset.open(tmp_path / "s")
    made = prepare(ImageFolder(), path, tmp_path / "s", size=8, damaged="skip")
    kept = [n for n in range(len(names)) if n not in (0, 17)]
    np.testing.assert_array_equal(made.train.images, whole.train.images[kept])
    np.testing.assert_array_equal(made.train.labels, whole.train.labels[kept])
    assert list(made.train.names) == [names[n] for n in kept]
    skipped = json.loads((made.folder / "meta.json").read_text())["skipped"]
    assert [image["name"] for image in skipped["train"]] == [names[0], names[17]]
    assert skipped["test"] == []
    made.verify()


def test_a_set_of_damaged_images_alone_is_refused(tmp_path):
    path = archives.folder(tmp_path / "x", {f"{c}/{n}.png": b"x" for c in "ab" for n in range(5)})
    with pytest.raises(UserError, match="no training image"):
        prepare(ImageFolder(), path, tmp_path / "s", damaged="skip")


# --- stopped at any moment ---

KILLED = """
import os, signal, sys, warnings
from pathlib import Path
from promptax.data import prepare as module
from promptax.data.formats import ImageFolder

warnings.simplefilter("ignore")
module.STRIDE = 8
path, out, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
form, counts = ImageFolder(), [0, 0]

def event(kind):
    counts[0] += 1
    if counts[0] == counts[1]:
        os.kill(os.getpid(), signal.SIGKILL)

def hook(name, args):
    # Whatever touches the disk: opening, renaming, making and removing files.
    if (name == "open" or name.startswith("os.")) and ".partial" in str(args[:1]):
        event(name)

write = os.pwrite
os.pwrite = lambda *args: (event("write"), write(*args))[1]
sys.addaudithook(hook)

at, killed = 1, 0
while True:
    child = os.fork()
    if not child:
        counts[:] = [0, at]
        module.prepare(form, path, out / str(at), size=8, damaged="skip")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    killed += 1
    at += step
print(killed)
"""


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_set_that_was_killed_at_any_moment_ends_as_if_it_never_was(tmp_path, many, step):
    path, whole = many
    for name in (whole.train.names[3], whole.test.names[1]):
        (path / name).write_bytes(b"no image")
    expected = bytes_of(prepare(ImageFolder(), path, tmp_path / "a", size=8, damaged="skip").folder)
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "out"), str(step)]
    done = subprocess.run(command, capture_output=True, text=True)
    killed = int(done.stdout) if not done.returncode else pytest.fail(done.stderr)
    assert killed > 80 / step
    for n in range(killed):
        folder = tmp_path / "out" / str(1 + n * step)
        if not folder.exists():
            with pytest.raises(UserError, match="prepared"):
                Dataset.open(folder)
        made = prepare(ImageFolder(), path, folder, size=8, damaged="skip")
        assert bytes_of(made.folder) == expected, f"killed at event {1 + n * step}"


def test_work_goes_on_where_it_stopped(tmp_path, many, monkeypatch):
    path, whole = many
    monkeypatch.setattr(module, "STRIDE", 4)

    def stop(done, total):
        assert total == 40
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(ImageFolder(), path, tmp_path / "s", size=8, on_progress=stop)
    decoded = []
    counted = lambda *args, **fit: decoded.append(1) or decode(*args, **fit)
    monkeypatch.setattr(module, "decode", counted)
    made = prepare(ImageFolder(), path, tmp_path / "s", size=8)
    assert len(decoded) == 1 + 40 - 20  # One to learn the shape of all.
    assert bytes_of(made.folder) == bytes_of(whole.folder)


@pytest.mark.parametrize("short", [False, True])
def test_a_full_disk_is_one_line_and_the_work_goes_on_later(tmp_path, many, monkeypatch, short):
    path, whole = many
    left, write = [25], os.pwrite

    def limited(file, content, offset):
        left[0] -= 1
        if left[0] < 0 and not short:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[: None if left[0] >= 0 else 1], offset)

    monkeypatch.setattr(module, "STRIDE", 4)
    monkeypatch.setattr(os, "pwrite", limited)
    with pytest.raises(UserError, match="full: make room") as error:
        prepare(ImageFolder(), path, tmp_path / "s", size=8)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(os, "pwrite", write)
    made = prepare(ImageFolder(), path, tmp_path / "s", size=8)
    assert bytes_of(made.folder) == bytes_of(whole.folder)


def test_too_small_a_disk_is_refused_before_anything_is_decoded(tmp_path, many, monkeypatch):
    usage = lambda path: type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", usage)
    monkeypatch.setattr(module.ImageFile, "write", None)
    with pytest.raises(UserError, match=r"needs \d+\.\d MB at .*, where 100 bytes are free"):
        prepare(ImageFolder(), many[0], tmp_path / "s", size=100)


# --- what is there already ---


def test_a_set_that_is_there_is_opened_and_nothing_is_decoded(many, monkeypatch):
    path, whole = many
    monkeypatch.setattr(module, "decode", None)
    assert prepare(ImageFolder(), path, whole.folder, size=8).sha256 == whole.sha256


def test_a_set_of_another_size_or_source_is_refused_by_name(tmp_path, many):
    path, whole = many
    with pytest.raises(
        UserError, match=r"whole' was prepared with size 8, and not 9\. .*overwrite"
    ):
        prepare(ImageFolder(), path, whole.folder, size=9)
    with pytest.raises(UserError, match=r"with test_share 0\.2, and not 0\.5"):
        prepare(ImageFolder(test_share=0.5), path, whole.folder, size=8)
    with pytest.raises(UserError, match="with interpolation the default, and not bicubic"):
        prepare(ImageFolder(), path, whole.folder, size=8, interpolation="bicubic")
    with pytest.raises(UserError, match="with format folder, and not imagenet-r"):
        prepare(ImageNetR(), archives.imagenet_r(tmp_path), whole.folder, size=8)
    other = archives.folder(tmp_path / "others", archives.class_files(each=9))
    with pytest.raises(UserError, match=r"was prepared from 'many', and not from 'others'"):
        prepare(ImageFolder(), other, whole.folder, size=8)
    (path / "cat" / "0.jpg").write_bytes(archives.encoded(999, 13, "JPEG"))
    with pytest.raises(UserError, match=r"from '.*many', whose files have changed since\. Prepare"):
        prepare(ImageFolder(), path, whole.folder, size=8)


def test_options_that_came_later_do_not_make_a_set_another(many):
    path, whole = many
    meta = read_json(whole.folder / "meta.json")
    meta["made_from"]["options"] |= {"train_list": None}
    write_json(whole.folder / "meta.json", meta)
    assert prepare(ImageFolder(), path, whole.folder, size=8).sha256 == whole.sha256


def test_overwriting_replaces_a_set_once_the_new_one_is_complete(tmp_path, many):
    path, _ = many
    prepare(ImageFolder(), path, tmp_path / "s", size=8)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(ImageFolder(), path, tmp_path / "s", size=9, overwrite=True, on_progress=stop)
    assert Dataset.open(tmp_path / "s").train.images.shape[1:3] == (8, 8)
    again = prepare(ImageFolder(), path, tmp_path / "s", size=10, overwrite=True)
    assert again.train.images.shape[1:3] == (10, 10)
    assert not (tmp_path / "s.partial").exists()


def test_half_made_work_for_something_else_is_not_gone_on_with(tmp_path, many):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(ImageFolder(), many[0], tmp_path / "s", size=8, on_progress=stop)
    with pytest.raises(UserError, match=r"s\.partial' was prepared with size 8, and not 9"):
        prepare(ImageFolder(), many[0], tmp_path / "s", size=9)


def test_a_set_that_another_process_prepares_is_left_to_it(tmp_path, many):
    with (
        locked(tmp_path / "s"),
        pytest.raises(UserError, match=f"filled by process {os.getpid()} on "),
    ):
        prepare(ImageFolder(), many[0], tmp_path / "s", size=8)
    prepare(ImageFolder(), many[0], tmp_path / "s", size=8)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_a_size_that_makes_no_sense_is_refused(tmp_path, many, size):
    with pytest.raises(UserError, match="expected 1 to 4096"):
        prepare(ImageFolder(), many[0], tmp_path / "s", size=size)


def change(folder: Path, **entries) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **entries}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "meta.json").unlink(), "no meta.json"),
        (lambda f: (f / "meta.json").write_text("{"), "meta.json' is damaged"),
        (lambda f: (f / "meta.json").write_text("[]"), "meta.json' is damaged"),
        (lambda f: change(f, version=0), "another version of promptax"),
        (lambda f: change(f, shape=[8, 8, 1]), "train.images.npy' is damaged"),
        (lambda f: change(f, examples=3), "meta.json' is damaged"),
        (lambda f: change(f, files={}), "meta.json' is damaged"),
        (lambda f: os.truncate(f / "train.images.npy", 999), "train.images.npy' is damaged"),
        (lambda f: os.truncate(f / "test.labels.npy", 20), "test.labels.npy' is damaged"),
        (lambda f: (f / "test.groups.npy").unlink(), "test.groups.npy' not found"),
    ],
)
def test_a_damaged_set_is_refused_with_the_file_that_is_damaged(many, harm, says):
    harm(many[1].folder)
    with pytest.raises(UserError) as error:
        Dataset.open(many[1].folder)
    assert says in str(error.value)


@pytest.mark.parametrize("file", ["train.images.npy", "test.labels.npy", "train.names.txt"])
def test_verifying_names_the_file_that_has_changed(many, file):
    whole = many[1]
    content = bytearray((whole.folder / file).read_bytes())
    content[-2] ^= 1
    (whole.folder / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        whole.verify()


def test_names_are_read_when_they_are_asked_for(tmp_path):
    names = Lines(tmp_path / "names.txt", 32)
    assert len(names) == 32
    with pytest.raises(UserError, match=r"names\.txt' is damaged"):
        names[0]
    (tmp_path / "names.txt").write_text("only one\n")
    with pytest.raises(UserError, match="1 lines, expected 32"):
        names[0]


def test_few_large_images_wait_to_be_decoded(monkeypatch):
    monkeypatch.setattr(module, "READ_AHEAD", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    read = []

    def items():
        for number in range(20):
            read.append(number)
            yield bytes(250)

    done = module._ahead(len, items(), result_bytes=50)
    assert next(done) == 250
    assert len(read) <= 4  # three wait, and the next one does not fit
    assert len(list(done)) == 19


BEYOND_THE_LIMIT = """
import numpy as np
from promptax.core.errors import UserError
from promptax.core.limits import bounded_memory

with bounded_memory():
    np.ones(10 * 2**20, np.uint8)
try:
    with bounded_memory():
        np.ones(2**30, np.uint8)
except UserError as error:
    print(error)
assert np.ones(2**29, np.uint8).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_beyond_the_limit_is_a_user_error(monkeypatch):
    monkeypatch.setenv("PROMPTAX_MAX_MEMORY", "300MB")
    # In a process of its own: this one may hold freed memory that counts as taken already.
    done = subprocess.run(
        [sys.executable, "-c", BEYOND_THE_LIMIT], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "PROMPTAX_MAX_MEMORY" in done.stdout


def test_class_folders_inside_folders_are_refused_with_the_names_that_parts_may_have(tmp_path):
    files = archives.class_files("animals/", 3) | archives.class_files("plants/", 3)
    path = archives.folder(tmp_path / "nested", files)
    with pytest.raises(UserError, match=r"one of train, .* and one of test, "):
        prepare(ImageFolder(), path, tmp_path / "s", size=8)
