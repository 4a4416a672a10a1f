"""Sets whose images are named by lists and tables: CUB, Stanford Cars, CSV, lists of a split."""

import csv
import io
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptax.core.errors import UserError
from promptax.data.formats import FORMATS, Cars, Cifar, Cub, ImageFolder, LabelTable
from promptax.data.formats.names import NamedImages
from promptax.data.prepare import prepare


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def tails(names) -> list[str]:
    return [name.rpartition("/")[2] for name in names]


# --- names ---


def test_a_path_stands_for_the_image_that_it_is_the_end_of_and_the_other_way_round():
    images = NamedImages(["set/train/rose/1.jpg", "set/train/elm/1.jpg", "set/test/rose/1.jpg"])
    assert images.find("set/train/rose/1.jpg") == [0]
    assert images.find("/data/set/train/rose/1.jpg") == [0]
    assert images.find("./train/rose/1.jpg") == images.find("train\\rose\\1.jpg") == [0]
    assert images.find("elm/1.jpg") == images.find("elm/1") == [1]
    assert images.find("other/train/elm/1.jpg") == [1]  # the folder around the set does not count
    assert images.find("rose/1.jpg") == [0, 2]
    assert images.find("1.jpg") == [0, 1, 2]
    assert images.find("ose/1.jpg") == images.find("valid/rose/1.jpg") == images.find("") == []


def test_folders_that_the_set_does_not_have_are_the_same_in_all_paths():
    flat = NamedImages(["1.jpg", "2.jpg", "3.png"])
    assert flat.resolve(["/data/2.jpg", "/data/1"], "list") == [1, 0]
    for paths in (["a/1.jpg", "b/2.jpg"], ["1.jpg", "b/2.jpg"], ["a/3", "2"]):
        with pytest.raises(UserError, match=r"of list, such as '.*', '.*', begin with different"):
            flat.resolve(paths, "list")
    assert flat.resolve(["./d/././1.jpg", "d/2.jpg"], "list") == [0, 1]
    plain = NamedImages(["train/0", "train/1", "test/.jpg"])
    assert plain.resolve(["/data/train/1", "/data/train/0", "/data/test/.jpg"], "list") == [1, 0, 2]
    # Folders that only the set has may differ: tables often hold names of files alone.
    assert NamedImages(["train/1.jpg", "test/2.jpg"]).resolve(["2", "1"], "list") == [1, 0]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c.png"]), min_size=1, max_size=4).map("/".join),
        unique=True,
        max_size=12,
    ),
    st.lists(st.sampled_from(["a", "b", "c.png"]), min_size=1, max_size=5).map("/".join),
)
def test_every_image_is_found_by_its_own_name_and_by_nothing_else(names, path):
    images = NamedImages(names)
    assert all(images.find(name) == [at] for at, name in enumerate(names))
    for at in images.find(path):
        name = images.names[at].removesuffix(".png")
        short = images.short_names[at].removesuffix(".png")
        ends = f"/{path.removesuffix('.png')}"
        assert f"/{name}".endswith(ends) or ends.endswith(f"/{short}")


# --- CUB ---


def test_cub_is_divided_and_numbered_as_its_files_say(tmp_path):
    archive = archives.cub(tmp_path)
    extracted = archives.folder(tmp_path / "x", archives.cub_files())
    for place in (archive, extracted, extracted / "CUB_200_2011"):
        listing = Cub().list(place)
        assert listing.class_names[::2] == ("Black footed Albatross", "Red winged Blackbird")
        assert list(listing.train.labels) == list(listing.test.labels) == [0, 0, 1, 1, 2, 2]
        assert tails(listing.test.names)[0] == "Black_footed_Albatross_0002_1.jpg"
    assert len(prepare(Cub(), archive, tmp_path / "out", size=8).train.labels) == 6


def test_classes_without_an_image_are_left_out_as_in_nabirds(tmp_path):
    files = archives.cub_files("nabirds/")
    files["nabirds/classes.txt"] = b"0 Birds\n1 Common Eider (Adult male)\n2 Loon\n3 Owl\n"
    listing = Cub().list(archives.folder(tmp_path, files))
    assert listing.class_names == ("Common Eider (Adult male)", "Loon", "Owl")


def test_birds_of_one_name_keep_the_numbers_that_tell_them_apart(tmp_path):
    files = archives.cub_files()
    files["CUB_200_2011/classes.txt"] = b"1 Bird\n2 Bird\n3 Sea\n"
    listing = Cub().list(archives.folder(tmp_path, files))
    assert listing.class_names == ("Bird (1)", "Bird (2)", "Sea")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("images.txt", "\n2 ", "\n1 ", r"line 2 of .*images\.txt' .*repeats the number 1"),
        ("images.txt", "\n2 ", "\n99 ", r"1 of the 12 images of images\.txt .* number '99'"),
        ("images.txt", "0002_1", "0001_0", r"0001_0\.jpg' is in images\.txt .* twice"),
        ("images.txt", "0002_1", "\x1b[2J", r"1 of the 12 images .* such as '.*\\x1b\[2J\.jpg'"),
        ("image_class_labels.txt", "5 2\n", "", r"1 of the 12 images .* not in image_class_labels"),
        ("image_class_labels.txt", "5 2\n", "5 201\n", "value '201'; expected one of 3"),
        ("train_test_split.txt", "5 1\n", "5 7\n", "value '7'; expected one of 2, such as '1'"),
        ("train_test_split.txt", "5 1\n", "5\n", r"line 5 of .* is '5': expected a number"),
        ("train_test_split.txt", "5 1\n7 1", "5 0\n7 0", "'Laysan Albatross' of .* no training"),
        ("classes.txt", None, "", r"classes\.txt' .* is empty"),
    ],
)
def test_what_the_files_of_cub_get_wrong_is_named(tmp_path, file, old, new, words):
    files = archives.cub_files()
    name = f"CUB_200_2011/{file}"
    text = files[name].decode()
    if file == "train_test_split.txt" and "7" in (old or ""):
        text = text.replace("5 1\n", "5 0\n").replace("7 1\n", "7 0\n")
    else:
        text = new if old is None else text.replace(old, new)
    files[name] = text.encode()
    with pytest.raises(UserError, match=words):
        Cub().list(archives.folder(tmp_path, files))


def test_what_cub_lacks_is_named(tmp_path):
    files = archives.cub_files()
    lacking = {name: content for name, content in files.items() if "Laysan" not in name}
    with pytest.raises(UserError, match=r"4 of the 12 images of images\.txt .*Laysan"):
        Cub().list(archives.folder(tmp_path / "a", lacking))
    del files["CUB_200_2011/classes.txt"]
    with pytest.raises(UserError, match=r"should hold a file 'classes\.txt'"):
        Cub().list(archives.folder(tmp_path / "b", files))


# --- Stanford Cars ---


@pytest.mark.parametrize("make", [archives.cars, archives.cars_in_parts])
def test_cars_in_both_publications(tmp_path, make):
    listing = Cars().list(make(tmp_path))
    assert listing.class_names == archives.MODELS
    assert list(listing.train.labels) == [0, 0, 1, 1, 1, 2, 2, 2]
    assert list(listing.test.labels) == [0, 0, 1, 2]
    read = [*listing.train.images.read(np.arange(8)), *listing.test.images.read(np.arange(4))]
    wanted = [n for n in range(12) if n % 3] + [n for n in range(12) if n % 3 == 0]
    assert read == [archives.encoded(n, 12, "JPEG") for n in wanted]


def test_what_cars_lack_or_get_wrong_is_named(tmp_path):
    path = archives.cars(tmp_path)
    (path / "car_ims.tgz").unlink()
    with pytest.raises(UserError, match=r"12 of the 12 images of the annotations .* 'car_ims/00"):
        Cars().list(path)
    rows = archives.cars_rows()
    rows[3]["class"] = np.uint8(4)
    annotations = archives.structs(rows)
    content = archives.mat_bytes(annotations=annotations, class_names=archives.cells("abc"))
    (path / "cars_annos.mat").write_bytes(content)
    with pytest.raises(UserError, match=r"car_ims/000004\.jpg' .* class 4; expected 1 to 3"):
        Cars().list(path)
    for wrong in (1.7, "sedan"):
        rows[3]["class"] = wrong
        content = archives.mat_bytes(
            annotations=archives.structs(rows), class_names=archives.cells("abc")
        )
        (path / "cars_annos.mat").write_bytes(content)
        with pytest.raises(UserError, match=f"the class {wrong}; expected a whole number"):
            Cars().list(path)
    content = archives.mat_bytes(
        annotations=archives.structs(archives.cars_rows()),
        class_names=archives.cells(["a", "b", "a"]),
    )
    (path / "cars_annos.mat").write_bytes(content)
    with pytest.raises(UserError, match="have 2 classes called 'a': give each class a name"):
        Cars().list(path)
    (path / "cars_annos.mat").write_bytes(archives.mat_bytes(class_names=archives.cells("abc")))
    with pytest.raises(UserError, match="no variable 'annotations'"):
        Cars().list(path)
    (path / "cars_annos.mat").unlink()
    with pytest.raises(UserError, match=r"should hold cars_annos\.mat; or cars_train_annos\.mat"):
        Cars().list(path)
    parts = archives.cars_in_parts(tmp_path)
    (parts / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(UserError, match=r"'class' in 'annotations'; .* cars_test_annos_withlabels"):
        Cars().list(parts)


# --- CSV ---


def label_table(path: Path, *lines: str, **options) -> LabelTable:
    return LabelTable(labels=write(path / "labels.csv", *lines), **options)


def flat(path: Path, names: list[str]) -> Path:
    return archives.folder(path / "flat", {name: archives.encoded(0) for name in names})


@pytest.mark.parametrize(
    "header", ["file,species,split", "Image ID;Class;Set", "path\tweight\ttarget\tpartition"]
)
def test_columns_are_found_by_their_names_and_separators(tmp_path, header):
    separator = next(mark for mark in ";\t," if mark in header)
    rows = ["2,oak,train", "1,elm,TRAINING", "3,oak,val", "4,elm,test"]
    if "weight" in header:
        rows = [row.replace(",", ",9.5,", 1) for row in rows]
    form = label_table(tmp_path, header, *(row.replace(",", separator) for row in rows))
    path = flat(tmp_path, [f"{n}.png" for n in range(1, 6)])
    listing = form.list(path)
    assert listing.class_names == ("elm", "oak")
    assert (listing.train.names, listing.test.names) == (["2.png", "1.png"], ["4.png"])
    assert (list(listing.train.labels), list(listing.test.labels)) == ([1, 0], [0])
    added = LabelTable(labels=form.labels, validation="train").list(path)
    assert added.train.names == ["2.png", "1.png", "3.png"]
    instead = LabelTable(labels=form.labels, validation="test").list(path)
    assert instead.test.names == ["3.png"]


def test_without_a_column_the_digests_of_class_and_file_name_divide_the_set(tmp_path):
    names = [f"{n}.png" for n in range(20)]
    rows = [f"{name},{n % 2}" for n, name in enumerate(names)]
    form = label_table(tmp_path, "file,label", *rows)
    listing = form.list(flat(tmp_path, names))
    assert np.bincount(listing.test.labels).tolist() == [2, 2]
    inside = archives.zipped(tmp_path / "a.zip", {f"top/{n}": b"" for n in names})
    assert tails(form.list(inside).test.names) == listing.test.names


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    form = label_table(
        tmp_path, "file,label", "1.png,10", "2.png,9", "3.png,10", "4.png,9", test_share=0.5
    )
    assert form.list(flat(tmp_path, ["1.png", "2.png", "3.png", "4.png"])).class_names == (
        "9",
        "10",
    )


def test_a_table_in_the_archive_is_found(tmp_path):
    path = archives.label_table(tmp_path)
    made = prepare(LabelTable(), path, tmp_path / "out", size=8)
    assert (made.class_names, len(made.train.labels), len(made.test.labels)) == (
        ("elm", "oak"),
        7,
        3,
    )
    write(path / "more.csv", "file,label")
    with pytest.raises(
        UserError, match=r"should hold one CSV file .* has 2: give it with LabelTable.labels="
    ):
        LabelTable().list(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file,colour", "1.png,red"], "a column called label, class, .* has 'file', 'colour': ch"),
        (["name,label", "1.png,red"], "called filename, .* has 'name', 'label': choose .*--image"),
        (["file,class,species", "1.png,a,b"], "columns 'class' and 'species': choose .*--label-co"),
        (["file,label", "1.png,a", "9.png,a"], "1 of the 2 images .* '9.png'.* names such as '1.p"),
        (["file,label", "1.png,a", "1,a"], "image '1.png' is in table .* twice"),
        (["file,label", "1.png,a", "2.png"], "line 3 .* has 1 cells; expected 2"),
        (["file,label", "1.png,a", "2.png, "], "line 3 .* nothing in the column 'label'"),
        (["file,label,split", "1.png,a,fold1"], "'fold1' in the column .* one of train, training"),
        (["file,label,split", "1.png,a,train", "2.png,b,test"], "class 'b' .* no training image"),
        (["file,label", "1.png,1", "2.png,01"], "writes the class 1 as '01' and as '1': write"),
        (["file,label"], "no row below the names"),
        ([], "a column called"),
        (['file,"label', "1.png,a"], "begins in line 1 of .* cannot be read as CSV"),
        (["file,label", "1.png,a", '2.png,"b', "3.png,b"], "begins in line 3 .* close its quotes"),
        (
            ["file,label", '1.png,"a', '2.png,b"'],
            "line 2 .* has a line break in the column 'label'",
        ),
        (["file,label", '"1.png', '2.png",b'], "line 2 .* has a line break in the column 'file'"),
    ],
)
def test_what_a_table_gets_wrong_is_named(tmp_path, lines, words):
    form = label_table(tmp_path, *lines)
    with pytest.raises(UserError, match=words):
        form.list(flat(tmp_path, ["1.png", "2.png"]))


def test_a_column_that_is_named_is_read_or_missed(tmp_path):
    path = flat(tmp_path, ["1.png", "2.png"])
    lines = ["file,class,species,fold", "1.png,x,a,train", "2.png,x,a,test"]
    form = label_table(tmp_path, *lines, label_column="species", split_column="fold")
    assert form.list(path).test.names == ["2.png"]
    with pytest.raises(UserError, match="one column 'kind'; it has 'file', 'class', 'species'"):
        LabelTable(labels=form.labels, label_column="kind").list(path)


@settings(max_examples=30)
@given(st.lists(st.text(max_size=6), min_size=2, max_size=5), st.text(max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory, cells, rest):
    folder = tmp_path_factory.mktemp("table")
    file = io.StringIO()
    csv.writer(file).writerow(cells)
    (folder / "a.csv").write_text(file.getvalue() + rest)
    (folder / "1.png").write_bytes(b"")
    try:
        listing = LabelTable(image_column=cells[0], label_column=cells[1]).list(folder)
    except UserError:
        return
    assert listing.train.names


# --- lists ---


@pytest.mark.parametrize(
    "name", ["folder", "notmnist", "core50", "domainnet", "cub", "cars", "csv", "cifar10"]
)
def test_lists_divide_the_sets_of_every_format_that_has_named_images(tmp_path, name):
    path = archives.ARCHIVES[name](tmp_path)
    form: Any = FORMATS[name]()
    whole = form.list(path)
    pool = [*whole.train.names, *whole.test.names]
    label_of = dict(zip(pool, [*whole.train.labels, *whole.test.labels], strict=True))
    # Of each class the last image is for testing, and one more is in no list.
    by_class: dict[int, list[str]] = {}
    for image in pool:
        by_class.setdefault(int(label_of[image]), []).append(image)
    members = [images for images in by_class.values() if len(images) > 2][:2]
    train = write(tmp_path / "train.txt", *(n for images in members for n in images[:-2]))
    test = write(tmp_path / "test.txt", *(images[-1] for images in members))
    listing = type(form)(train_list=train, test_list=test).list(path)
    assert (sorted(listing.train.names), sorted(listing.test.names)) == (
        sorted(n for images in members for n in images[:-2]),
        sorted(images[-1] for images in members),
    )
    assert len(listing.class_names) == 2
    assert listing.split == "lists"
    for part in (listing.train, listing.test):
        for image, label in zip(part.names, part.labels, strict=True):
            assert listing.class_names[label] == whole.class_names[label_of[image]]
    rest = type(form)(test_list=test).list(path)
    assert sorted([*rest.train.names, *rest.test.names]) == sorted(pool)
    assert rest.test.names == listing.test.names
    made = prepare(type(form)(train_list=train, test_list=test), path, tmp_path / "out", size=8)
    np.testing.assert_array_equal(made.train.labels, listing.train.labels)


def test_a_list_decides_over_the_folders_of_parts(tmp_path):
    path = archives.image_folder(tmp_path)
    test = write(tmp_path / "test.txt", "train/bird/0.jpg", "val/cat/1.PNG")
    listing = ImageFolder(test_list=test).list(path)
    assert listing.test.names == ["train/bird/0.jpg", "val/cat/1.PNG"]
    assert (len(listing.train.names), listing.class_names) == (12, ("bird", "cat"))


def test_numbers_in_all_lines_put_the_classes_in_order(tmp_path):
    path = archives.folder(tmp_path / "a", archives.class_files(each=3))
    train = write(tmp_path / "train.txt", "bird/0.jpg 7", "cat/0.jpg 2")
    test = write(tmp_path / "test.txt", "bird/2.jpg\t7")
    listing = ImageFolder(train_list=train, test_list=test).list(path)
    assert listing.class_names == ("cat", "bird")
    assert (listing.train.labels, listing.test.labels) == ([1, 0], [1])
    write(test, "bird/2.jpg")
    assert ImageFolder(train_list=train, test_list=test).list(path).class_names == ("cat", "bird")
    assert ImageFolder(train_list=train).list(path).class_names == ("cat", "bird")
    write(test, "bird/2.jpg 7", "cat/2.jpg 2")
    assert ImageFolder(test_list=test).list(path).class_names == ("cat", "bird")
    write(test, "bird/2.jpg 7")
    with pytest.raises(
        UserError, match="gives classes numbers, but class 'cat' has no image in it"
    ):
        ImageFolder(test_list=test).list(path)
    write(test, "bird/2.jpg 2")
    with pytest.raises(UserError, match="each of the 2 classes a number of its own"):
        ImageFolder(train_list=train, test_list=test).list(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "names no image"),
        (
            ["bird/9.jpg", "emu/0.jpg", "cat/0.jpg"],
            "2 of the 3 images .* 'bird/9.jpg', 'emu/0",
        ),
        (["bird/9.jpg"], "The set has 6 images, with names such as 'bird/0.jpg'"),
        (["bird/0.jpg", "./bird/0.jpg"], "'bird/0.jpg' is in list .* twice"),
        (
            ["bird/0.jpg 1", "", "cat/2.jpg", "bird/1.jpg 1"],
            "line 3 of list .*, 'cat/2.jpg', has no class number behind the path, but line 1 has",
        ),
        (["0.jpg"], "'0.jpg' of list .* any of 2 images, such as 'bird/0.jpg', 'cat/0.jpg'"),
        (["bird/0.jpg", "cat/0.jpg"], "'cat/0.jpg' is in list .*train.* and in list .*test"),
        (["bird/2.jpg"], "class 'bird' has test images in .* no training image in .*train"),
        (["a\x1b[2J\n"], r"such as 'a\\x1b\[2J'"),
    ],
)
def test_what_a_list_gets_wrong_is_named(tmp_path, lines, words):
    path = archives.folder(tmp_path / "a", archives.class_files(each=3))
    train = write(tmp_path / "train.txt", "cat/0.jpg", "cat/1.PNG")
    test = write(tmp_path / "test.txt", *lines)
    with pytest.raises(UserError, match=words):
        ImageFolder(train_list=train, test_list=test).list(path)


def test_a_list_that_leaves_nothing_and_a_set_without_names_are_refused(tmp_path):
    path = archives.folder(tmp_path / "a", archives.class_files(each=1))
    with pytest.raises(UserError, match="names all images of the set"):
        ImageFolder(test_list=write(tmp_path / "all.txt", "bird/0.jpg", "cat/0.jpg")).list(path)
    binary = archives.cifar(tmp_path, 10, binary=True)
    with pytest.raises(UserError, match="have no names that lists could name"):
        Cifar(test_list=tmp_path / "all.txt").list(binary)
