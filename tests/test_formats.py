"""Every format, on small archives of the published layout; none of them can be trusted."""

import contextlib
import hashlib
import io
import os
import pickle
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import archives
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promptax.core.errors import UserError
from promptax.data.formats import FORMATS, Cifar, HuggingFace, ImageFolder, ImageNetR
from promptax.data.formats.domainnet import DOMAINS
from promptax.data.formats.format import split_by_name
from promptax.data.formats.imagenet_r import torch_permutation
from promptax.data.formats.notmnist import DAMAGED
from promptax.data.formats.wire import parse_example
from promptax.data.prepare import prepare

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs an extra")


def pixels(content: bytes) -> np.ndarray:
    """By Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def made(tmp_path: Path, name: str, path: Path | None = None, **options):
    path = path or archives.ARCHIVES[name](tmp_path)
    return prepare(FORMATS[name](), path, tmp_path / "out" / name, **options)


def stored(listed) -> list:
    """The images of a part before they are decoded."""
    return list(listed.images.read(np.arange(len(listed.names))))


# --- what is read is what was written ---


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_in_both_forms_and_extracted(tmp_path, classes, binary):
    path = archives.cifar(tmp_path, classes, binary)
    extracted = archives.folder(tmp_path / "x", archives.cifar_files(classes, binary))
    files = archives.cifar_arrays(classes)
    for place in (path, tmp_path, extracted, next(extracted.iterdir())):
        listing = Cifar(classes).list(place)
        assert listing.class_names == tuple(f"class {n}" for n in range(classes))
        *train, test = files.values()
        for part, wanted in ((listing.train, train), (listing.test, [test])):
            rows = np.concatenate([rows for rows, _ in wanted])
            # As the authors describe it: 1024 red bytes, then green, then blue, row by row.
            planes = rows.reshape(-1, 3, 32, 32)
            for image, expected in zip(stored(part), planes, strict=True):
                for channel in range(3):
                    np.testing.assert_array_equal(image[..., channel], expected[channel])
            np.testing.assert_array_equal(part.labels, np.concatenate([y for _, y in wanted]))


@pytest.mark.parametrize(("mark", "zip_it"), [("-", True), (".", False)])
def test_idx_files_by_both_names_and_zipped_or_not(tmp_path, mark, zip_it):
    data = made(tmp_path, "idx", archives.idx(tmp_path, mark, zip_it))
    random = np.random.default_rng(0)
    for part, count in ((data.train, 20), (data.test, 10)):
        expected = random.integers(0, 256, (count, 28, 28), np.uint8)
        np.testing.assert_array_equal(part[np.arange(count)], expected[..., None])
        assert part.labels.tolist() == [n % 10 for n in range(count)]
    assert data.class_names == tuple("0123456789")


def test_svhn_calls_the_digit_0_by_label_10(tmp_path):
    data = made(tmp_path, "svhn")
    expected = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), np.uint8)
    np.testing.assert_array_equal(data.train[np.array([5])][0], expected[..., 5])
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_notmnist_leaves_out_the_two_images_that_are_damaged_as_published(tmp_path):
    data = made(tmp_path, "notmnist")
    assert data.class_names == tuple("ABCDEFGHIJ")
    assert np.bincount(data.train.labels).tolist() == [6] * 10
    assert np.bincount(data.test.labels).tolist() == [2] * 10
    names = [*data.train.names, *data.test.names]
    assert len(set(names)) == 80
    for n, name in enumerate(data.train.names):
        letter, number = Path(name).stem
        seed = 100 * (ord(letter) - ord("A")) + int(number)
        expected = pixels(archives.encoded(seed, 28, "PNG", "L"))
        np.testing.assert_array_equal(data.train[np.array([n])][0], expected)
    meta = (data.folder / "meta.json").read_text()
    assert all(f"notMNIST_small/{name}" in meta for name in DAMAGED)


def test_notmnist_with_a_split_keeps_it(tmp_path):
    files = {
        f"notMNIST/{part}/{letter}/{n}.png": archives.encoded(n, 28, "PNG", "L")
        for part, count in (("Train", 3), ("Test", 2))
        for letter in "AB"
        for n in range(count)
    }
    listing = FORMATS["notmnist"]().list(archives.zipped(tmp_path / "notMNIST.zip", files))
    assert listing.train.labels == [0, 0, 0, 1, 1, 1]
    assert {name.split("/")[1] for name in listing.test.names} == {"Test"}


def test_core50_has_the_official_split_and_sessions_as_groups(tmp_path):
    data = made(tmp_path, "core50")
    assert data.class_names[4:6] == ("plug adapter 5", "mobile phone 1")
    assert data.group_names == tuple(f"s{n}" for n in (1, 2, 4, 5, 6, 8, 9, 11, 3, 7, 10))
    assert set(data.train.groups) == set(range(8))
    assert set(data.test.groups) == {8, 9, 10}
    for part in (data.train, data.test):
        for n in range(0, len(part.labels), 29):
            session = data.group_names[part.groups[n]]
            assert f"/{session}/o{part.labels[n] + 1}/" in part.names[n]
            seed = 100 * int(session[1:]) + part.labels[n] + 1
            expected = pixels(archives.encoded(int(seed), 4))
            np.testing.assert_array_equal(part[np.array([n])][0], expected)


def tails(names):
    return ["/".join(name.split("/")[-2:]) for name in names]


def test_imagenet_r_is_split_by_file_names_alone(tmp_path):
    archive = archives.imagenet_r(tmp_path)
    first = ImageNetR().list(archive)
    assert first.class_names == ("goldfish", "great white shark", "egret")
    assert np.bincount(first.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(first.test.labels).tolist() == [1, 1, 1]
    with tarfile.open(archive) as opened:
        files = {
            m.name: (opened.extractfile(m) or io.BytesIO()).read() for m in opened if m.isfile()
        }
    archives.folder(tmp_path / "elsewhere", files)
    other = ImageNetR().list(tmp_path / "elsewhere" / "imagenet-r")
    assert tails(first.test.names) == tails(other.test.names)


def test_imagenet_r_takes_published_lists(tmp_path):
    archive = archives.imagenet_r(tmp_path)
    lines = b"n01484850/art_3.jpg\r\nimagenet-r/n01443537/art_0.jpg\n"
    (tmp_path / "train.txt").write_bytes(lines)
    (tmp_path / "test.txt").write_text("n01443537/art_1.jpg\n")
    form = ImageNetR(train_list=tmp_path / "train.txt", test_list=tmp_path / "test.txt")
    listing = form.list(archive)
    tails = ["n01443537/art_0.jpg", "n01484850/art_3.jpg"]
    assert listing.train.names == [f"imagenet-r/{tail}" for tail in tails]
    assert (listing.train.labels, listing.test.labels) == ([0, 1], [0])
    assert listing.class_names == ("goldfish", "great white shark")  # no list has an egret
    (tmp_path / "test.txt").write_text("n02009912/art_9.jpg\n")
    with pytest.raises(UserError, match=r"art_9\.jpg"):
        form.list(archive)


def test_imagenet_r_takes_the_lists_and_class_numbers_of_coda_prompt(tmp_path):
    archive = archives.imagenet_r(tmp_path)
    # As in dataloaders/splits of CODA-Prompt, where 153 is n01910747.
    path = "- data/imagenet-r/{}/art_{}.jpg\n".format
    train = [("n02009912", 0, 0), ("n01443537", 3, 2), ("n01484850", 1, 1), ("n02009912", 2, 0)]
    for name, rows in (("train", train), ("test", [("n01443537", 4, 2)])):
        items = "".join(path(wnid, number) for wnid, number, _ in rows)
        targets = "".join(f"- {target}\n" for *_, target in rows)
        (tmp_path / f"{name}.yaml").write_text(f"data:\n{items}targets:\n{targets}")
    form = ImageNetR(train_list=tmp_path / "train.yaml", test_list=tmp_path / "test.yaml")
    listing = form.list(archive)
    assert listing.split == "lists"
    assert listing.class_names == ("egret", "great white shark", "goldfish")
    wanted = sorted(f"{wnid}/art_{number}.jpg" for wnid, number, _ in train)
    assert tails(listing.train.names) == wanted
    number_of = {wnid: target for wnid, _, target in train}
    assert listing.train.labels == [number_of[tail.split("/")[0]] for tail in wanted]
    assert listing.test.labels == [2]
    for text, words in (
        ("data:\n- n01443537/art_4.jpg\ntargets:\n- 1\n", "the same one to all images of a class"),
        ("data:\n- n01443537/art_4.jpg\ntargets:\n", "a number in its list targets"),
        ("data:\n- n01443537/art_4.jpg\nlabels:\n", "'labels:' of .* is not an item"),
        ("data:\n- n01443537/art_3.jpg\ntargets:\n- 2\n", r"art_3\.jpg' is in .* and in"),
    ):
        (tmp_path / "test.yaml").write_text(text)
        with pytest.raises(UserError, match=words):
            form.list(archive)


def test_imagenet_r_in_folders_keeps_their_division(tmp_path):
    files = {"train/n01443537/a.jpg": b"1", "train/n01484850/a.jpg": b"2"}
    files |= {"test/n01443537/a.jpg": b"3", "test/n01484850/b.jpg": b"4"}
    folder = archives.folder(tmp_path / "imagenet-r", files)
    listing = ImageNetR().list(folder)
    assert listing.split == "folders"
    # Images of the same name in both folders are two images.
    assert listing.train.names == ["train/n01443537/a.jpg", "train/n01484850/a.jpg"]
    assert listing.test.names == ["test/n01443537/a.jpg", "test/n01484850/b.jpg"]
    assert len(ImageNetR(split="sha256", test_share=0.5).list(folder).train.names) == 2
    archives.folder(tmp_path / "imagenet-r", {"n01443537/c.jpg": b"5"})
    with pytest.raises(UserError, match="neither in the folder `train` nor in `test`"):
        ImageNetR().list(folder)
    with pytest.raises(UserError, match="both folders"):
        ImageNetR(split="folders").list(archives.imagenet_r(tmp_path))


def test_imagenet_r_is_divided_as_by_tensorflow_datasets(tmp_path, caplog):
    listing = ImageNetR(split="tfds").list(archives.imagenet_r(tmp_path))
    names = [
        f"{wnid}_art_{n}.jpg" for wnid in ("n01443537", "n01484850", "n02009912") for n in range(5)
    ]

    def position(key):
        digest = hashlib.md5(b"test")  # the salt, which is the name of the split
        digest.update(key.encode())
        return int(digest.hexdigest(), 16)

    shuffled = sorted(names, key=position)
    assert sorted(tail.replace("/", "_") for tail in tails(listing.train.names)) == sorted(
        shuffled[:12]
    )
    assert (listing.split, len(listing.test.names)) == ("tfds", 3)
    assert "30,000 images, but 15 are here" in caplog.text


def test_imagenet_r_is_divided_as_by_hide_prompt(tmp_path):
    archive = archives.imagenet_r(tmp_path)
    listing = ImageNetR(split="hide", split_seed=7).list(archive)
    names = sorted([*listing.train.names, *listing.test.names])
    order = torch_permutation(len(names), 7)
    assert sorted(names.index(name) for name in listing.train.names) == sorted(order[:12])
    assert listing.split == "hide, seed 7"
    assert ImageNetR(split="hide").list(archive).train.names != listing.train.names
    with pytest.raises(UserError, match="split seed is -1"):
        ImageNetR(split="hide", split_seed=-1).list(archive)


def test_permutations_are_those_of_pytorch():
    # What PyTorch 2.13 prints for torch.manual_seed(42); torch.randperm(10).
    assert torch_permutation(10, 42) == [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
    assert torch_permutation(1, 3) == [0]
    assert sorted(torch_permutation(1000, 1993)) == list(range(1000))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "seed"), [(2, 0), (1000, 42), (30_000, 1993)])
def test_pytorch_itself_draws_these_permutations(count, seed):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    assert torch_permutation(count, seed) == torch.randperm(count, generator=generator).tolist()


def test_a_split_that_the_lists_contradict_is_refused(tmp_path):
    archive = archives.imagenet_r(tmp_path)
    with pytest.raises(UserError, match="lists of images are given, but the split is 'tfds'"):
        ImageNetR(test_list=tmp_path / "test.txt", split="tfds").list(archive)
    with pytest.raises(UserError, match="needs train_list and test_list"):
        ImageNetR(split="lists").list(archive)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_domainnet_reads_the_lists_whatever_their_line_ends(tmp_path, ends):
    data = made(tmp_path, "domainnet", archives.domainnet(tmp_path, ends), size=12)
    assert data.group_names == DOMAINS
    assert data.class_names == ("aircraft_carrier", "zigzag")
    assert np.bincount(data.train.groups).tolist() == [4] * 6
    for n, name in enumerate(data.test.names):
        domain, kind, file = name.split("/")
        label = data.test.labels[n]
        assert (DOMAINS[data.test.groups[n]], data.class_names[label]) == (domain, kind)
        seed = 100 * data.test.groups[n] + 10 * label + int(file[-10:-4])
        expected = pixels(archives.encoded(int(seed), 12, "JPEG"))
        np.testing.assert_array_equal(data.test[np.array([n])][0], expected)


def test_domainnet_says_which_file_is_missing(tmp_path):
    archives.domainnet(tmp_path)
    (tmp_path / "real.zip").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"real\.zip.* not found"):
        FORMATS["domainnet"]().list(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "real.zip")
    (tmp_path / "sketch_test.txt").unlink()
    with pytest.raises(UserError, match=r"sketch_test\.txt.* not found"):
        FORMATS["domainnet"]().list(tmp_path)


def test_class_folders_with_and_without_a_split(tmp_path):
    listing = ImageFolder().list(archives.image_folder(tmp_path))
    assert listing.class_names == ("bird", "cat")
    assert listing.train.labels == [0] * 5 + [1] * 5
    assert listing.test.names[0] == "val/bird/0.jpg"
    single = archives.folder(tmp_path / "single", archives.class_files(each=10))
    alone = ImageFolder(test_share=0.3).list(single)
    assert [len(part.names) for part in (alone.train, alone.test)] == [14, 6]
    zipped = archives.zipped(tmp_path / "a.zip", archives.class_files("top/", each=10))
    inside = ImageFolder(test_share=0.3).list(zipped)
    assert [f"top/{name}" for name in alone.test.names] == inside.test.names


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "testing"), ("TRAIN", "Valid"), ("train", "validation")]
)
@pytest.mark.parametrize("pack", [archives.folder, archives.zipped, archives.tar])
def test_a_division_is_kept_in_any_spelling(tmp_path, train, test, pack):
    files = archives.class_files(f"set/{train}/", 5) | archives.class_files(f"set/{test}/", 2)
    listing = ImageFolder().list(pack(tmp_path / "a", files))
    assert {name.split("/")[-3] for name in listing.train.names} == {train}
    assert {name.split("/")[-3] for name in listing.test.names} == {test}
    # Images of the same class and file name in both are two images.
    assert (len(listing.train.names), len(listing.test.names)) == (10, 4)


def test_validation_images_are_offered_and_not_lost(tmp_path, caplog):
    parts = {"train": 5, "val": 2, "test": 3}
    files = {
        k: v
        for part, each in parts.items()
        for k, v in archives.class_files(f"{part}/", each).items()
    }
    path = archives.folder(tmp_path / "a", files)
    with caplog.at_level("INFO", logger="promptax"):
        alone = ImageFolder().list(path)
    assert "4 validation images in 'val/', which are left out" in caplog.text
    count = lambda listing: (len(listing.train.names), len(listing.test.names))
    assert count(alone) == (10, 6)
    added = ImageFolder(validation="train").list(path)
    assert count(added) == (14, 6)
    assert len(set(added.train.names)) == 14
    instead = ImageFolder(validation="test").list(path)
    assert count(instead) == (10, 4)
    assert {name.split("/")[0] for name in instead.test.names} == {"val"}


def test_what_a_divided_set_lacks_is_named(tmp_path):
    path = archives.folder(tmp_path / "a", archives.class_files("train/"))
    (path / "other").mkdir()
    with pytest.raises(UserError, match=r"no folder for testing \(test, testing, val, .*split"):
        ImageFolder().list(path)
    nested = archives.folder(tmp_path / "b", archives.class_files("Birds/x/"))
    (nested / "Cats" / "y").mkdir(parents=True)
    (nested / "Cats" / "y" / "1.png").write_bytes(archives.encoded(0))
    with pytest.raises(UserError, match=r"one of train, training, and one of test, "):
        ImageFolder().list(nested)


def test_a_class_folder_without_an_image_and_a_test_class_without_training_are_named(tmp_path):
    path = archives.image_folder(tmp_path)
    (path / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="train/emu"):
        ImageFolder().list(path)
    (path / "train" / "emu").rename(path / "val" / "emu")
    (path / "val" / "emu" / "a.png").write_bytes(archives.encoded(0))
    with pytest.raises(UserError, match=r"val/emu/a\.png"):
        ImageFolder().list(path)
    with pytest.raises(UserError, match="for each class"):
        ImageFolder().list(path / "train" / "cat")


def test_arrays_in_one_file_in_two_and_as_npy(tmp_path):
    archives.arrays(tmp_path)
    whole = made(tmp_path, "arrays", tmp_path / "arrays.npz")
    content = dict(np.load(tmp_path / "arrays.npz"))
    for folder in ("pair", "npy"):
        (tmp_path / folder).mkdir()
    for part in ("train", "test"):
        fields = ("images", "labels", "groups")
        one = {kind: content[f"{part}_{kind}"] for kind in fields}
        np.savez(tmp_path / "pair" / f"{part}.npz", class_names=content["class_names"], **one)
    for name, array in content.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    for folder in ("pair", "npy"):
        data = prepare(FORMATS["arrays"](), tmp_path / folder, tmp_path / "out" / folder)
        assert data.sha256 == whole.sha256
    np.testing.assert_array_equal(whole.train[np.arange(9)], content["train_images"])
    assert whole.class_names == ("cat", "dog", "eel")
    assert whole.train.groups.tolist() == content["train_groups"].tolist()


@pytest.mark.parametrize("name", ["array-record", "save_to_disk", "parquet"])
def test_sets_of_other_libraries(tmp_path, name):
    if name == "array-record":
        form, path = FORMATS[name](), archives.array_record(tmp_path)
    else:
        pytest.importorskip("pyarrow")
        make = archives.parquet if name == "parquet" else archives.saved_to_disk
        form, path = HuggingFace(), make(tmp_path)
    data = prepare(form, path, tmp_path / "out", size=8)
    assert data.class_names == ("airplane", "bird")
    for part, seed, count in ((data.train, 0, 6), (data.test, 50, 4)):
        assert part.labels.tolist() == [n % 2 for n in range(count)]
        expected = [pixels(archives.encoded(seed + n)) for n in range(count)]
        np.testing.assert_array_equal(part[np.arange(count)], expected)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'promptax\[huggingface\]'"):
        HuggingFace().list(tmp_path)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.binary())
def test_examples_of_tensorflow_are_parsed(numbers, content):
    record = archives.example({"a": numbers, "b": content})
    parsed = parse_example(record)
    assert (parsed["a"] or [], parsed["b"]) == (numbers, [content])


@given(st.integers(4, 30), st.sampled_from([0.15, 0.2, 0.5]))
def test_a_split_by_name_takes_its_share_of_each_class_whatever_the_order(count, share):
    names = [f"{label}/{n}.png" for label in "ab" for n in range(count)]
    train, test = split_by_name(names, [name[0] for name in names], share)
    assert sorted(train + test) == sorted(names)
    assert [sum(n[0] == label for n in test) for label in "ab"] == [round(share * count)] * 2
    back = split_by_name(names[::-1], [name[0] for name in names[::-1]], share)
    assert set(back[1]) == set(test)


def test_a_share_that_leaves_no_test_image_is_refused():
    with pytest.raises(UserError, match=r"share of 0\.1 leaves no image .* more than 2 images"):
        split_by_name(["a/1.png", "a/2.png", "b/1.png"], ["a", "a", "b"], 0.1)


# --- what must be refused ---


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Hostile()}, 2),
        b'cbuiltins\neval\n(S\'open("executed", "w")\'\ntR.',
        b"cpromptax.data.formats.cifar\nos.system\n(S'touch executed'\ntR.",
    ],
)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    files = archives.cifar_files(10, binary=False)
    files["cifar-10-batches-py/data_batch_3"] = content
    archive = archives.tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    with pytest.raises(UserError, match="is not data: refused"):
        Cifar().list(archive)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_path_and_an_empty_folder_are_user_errors(tmp_path, name):
    if name == "huggingface":
        pytest.importorskip("pyarrow")
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError):
            FORMATS[name]().list(path)


# --- damage of any kind ---


MAKERS = {
    **archives.ARCHIVES,
    "cifar-extracted": lambda path: archives.folder(path, archives.cifar_files(10, False)),
    "idx-plain": lambda path: archives.idx(path, ".", False),
    "save_to_disk": archives.saved_to_disk,
    "parquet": archives.parquet,
}
KINDS = {"cifar-extracted": "cifar10", "idx-plain": "idx"}
ON_HUB = ("save_to_disk", "parquet")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folder, path for `prepare` and files of each kind, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            path = MAKERS[name](folder)
            made[name] = (folder, path, sorted(p for p in folder.rglob("*") if p.is_file()))
        return made[name]

    return get


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[needs_pyarrow] if n in ON_HUB else []) for n in MAKERS]
)
@settings(max_examples=5)
@given(draw=st.data())
def test_damage_gives_a_user_error_or_a_set_and_nothing_else(originals, name, draw):
    _, path, files = originals(name)
    file = draw.draw(st.sampled_from(files))
    good = file.read_bytes()
    cut = draw.draw(st.none() | st.integers(0, len(good)))
    broken = bytearray(good[:cut])
    for at in draw.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        if at < len(broken):
            broken[at] ^= draw.draw(st.integers(1, 255))
    form = HuggingFace() if name in ON_HUB else FORMATS[KINDS.get(name) or name]()
    with tempfile.TemporaryDirectory() as out:
        file.write_bytes(broken)
        try:
            with contextlib.suppress(UserError):
                prepare(form, path, Path(out) / "set", size=4, damaged="skip").verify()
        finally:
            file.write_bytes(good)
