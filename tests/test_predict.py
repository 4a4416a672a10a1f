"""`promptax predict`: class names and probabilities of image files."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import promptax
from promptax.cli import main
from promptax.data.image import read_image
from promptax.runs import predict
from promptax.runs.predict import classify_files, image_files

BLACK = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def run(trained):
    return trained


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a picture ü.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    return path


def test_it_prints_the_classes_that_the_learner_finds_most_probable(run, image, capsys):
    assert main(["predict", str(run), str(image), "--top", "2"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    name, *words = line.split("  ")
    assert name == str(image)
    learner = promptax.load(run)
    pixels = np.asarray(
        Image.open(image).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    )
    shares = np.asarray(learner.probabilities(pixels[None]))[0]
    best = np.argsort(-shares)[:2]
    assert words == [f"{learner.class_names[c]} {shares[c]:.3f}" for c in best]
    assert shares.sum() == pytest.approx(1, abs=1e-6)


def test_a_file_of_a_learner_predicts_as_its_run_does(run, image, tmp_path, capsys):
    promptax.load(run).save(tmp_path / "learner.npz")
    assert main(["predict", str(run), str(image)]) == 0
    expected = capsys.readouterr().out
    assert main(["predict", str(tmp_path / "learner.npz"), str(image)]) == 0
    assert capsys.readouterr().out == expected
    assert main(["predict", str(image), str(image)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_read(run, tmp_path, mode, capsys):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (7, 5)).save(path)
    assert main(["predict", str(run), str(path)]) == 0
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "not found"), (b"", "cannot be read"), (b"no image", "cannot be read")],
)
def test_an_image_that_cannot_be_read_is_named_before_anything_is_printed(
    run, image, tmp_path, content, says, capsys
):
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    assert main(["predict", str(run), str(image), str(bad)]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert "bad.png" in printed.err
    assert not printed.out


def test_a_truncated_image_is_named(run, image, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:2000])
    assert main(["predict", str(run), str(image)]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--top", "0"]])
def test_no_image_or_no_class_is_refused(run, image, argv, capsys):
    paths = [str(image)] if argv else []
    assert main(["predict", str(run), *paths, *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Five images in a folder and one below it, beside a file that is none."""
    folder = tmp_path_factory.mktemp("album") / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        name = f"{number}.png" if number < 4 else "below/4.JPG"
        pixels = np.full((9, 7, 3), 50 * number, np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def predicted(argv, capsys):
    """The names of the images in the lines that the command prints."""
    assert main(["predict", *map(str, argv)]) == 0
    return [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]


def test_folders_patterns_and_lists_name_images(run, album, tmp_path, capsys, monkeypatch):
    everything = [str(album / name) for name in ("0.png", "1.png", "2.png", "3.png")]
    everything.append(str(album / "below" / "4.JPG"))
    assert predicted([run, album], capsys) == everything
    assert predicted([run, album / "*.png"], capsys) == everything[:4]
    assert predicted([run, album / "**" / "[34].*"], capsys) == everything[3:]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{everything[2]}\n\n{everything[0]}\n")
    assert predicted([run, "--list", listed], capsys) == [everything[2], everything[0]]
    monkeypatch.setattr("sys.stdin", io.StringIO(everything[1]))
    assert predicted([run, everything[3], "--list", "-"], capsys) == everything[3:0:-2]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(run, album, tmp_path, capsys):
    odd = tmp_path / "a[1].png"
    shutil.copy(album / "1.png", odd)
    assert predicted([run, odd], capsys) == [str(odd)]


@pytest.mark.parametrize(
    ("name", "says"), [("empty", "holds no image file"), ("*.gif", "no file matches")]
)
def test_what_names_no_image_is_refused(run, tmp_path, name, says, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run), str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def test_csv_and_json_hold_the_same_in_any_batch(run, album, tmp_path, capsys):
    learner = promptax.load(run)
    pixels = np.stack([read_image(path, 32) for path in image_files([str(album)])])
    shares = np.asarray(learner.probabilities(pixels))
    for batch in ("2", "64"):
        for kind in ("csv", "json"):
            output = tmp_path / f"{batch}.{kind}"
            argv = ["predict", str(run), str(album), "--output", str(output)]
            assert main([*argv, "--top", "2", "--batch-size", batch]) == 0
            assert capsys.readouterr().out == f"predictions: {output}\n"
        entries = json.loads((tmp_path / f"{batch}.json").read_text())
        with (tmp_path / f"{batch}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for entry, row, share in zip(entries, rows, shares, strict=True):
            best = np.argsort(-share, kind="stable")[:2]
            names = [learner.class_names[c] for c in best]
            assert entry["image"] == row["image"]
            assert [each["class"] for each in entry["classes"]] == names
            assert [row["class_1"], row["class_2"]] == names
            got = [each["probability"] for each in entry["classes"]]
            np.testing.assert_allclose(got, share[best], atol=1e-5)
            np.testing.assert_allclose(float(row["probability_1"]), share[best[0]], atol=1e-5)


def test_no_more_images_than_a_batch_are_read_at_once(run, album):
    learner = promptax.load(run)
    files = image_files([str(album)])
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "read_image", lambda path, side, **_: read.append(path) or BLACK)
        for number, batch in enumerate(classify_files(learner, files, top=1, batch_size=2)):
            assert len(read) == min(len(files), 2 * number + 2)
            assert [one.path for one in batch] == files[2 * number :][:2]


def test_damaged_files_are_left_out_if_asked_for(run, album, tmp_path, capsys, caplog):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    output = tmp_path / "out.csv"
    argv = ["predict", str(run), str(bad), str(album), "--output", str(output)]
    assert main(argv) == 2
    assert "--skip-damaged" in capsys.readouterr().err
    assert not output.exists()
    assert main([*argv, "--skip-damaged"]) == 0
    assert len(output.read_text().splitlines()) == 1 + 5
    assert "1 of 6 files could not be read" in caplog.text


def test_a_copied_run_predicts_without_its_data_from_any_folder(
    tiny, tmp_path, album, monkeypatch, capsys
):
    """The weights are found in the run folder, beside it, among downloads, or where they are."""
    home = tmp_path / "home"
    home.mkdir()
    for file in (tiny.weights, tiny.train, tiny.test):
        shutil.copy(file, home)
    monkeypatch.chdir(home)
    here = ["--data.train", "train.npz", "--data.test", "test.npz", "--weights", "weights.npz"]
    argv = ["train", "ncm", *tiny.flags(), *here, "--run", "run"]
    assert main(argv) == 0
    config = json.loads((home / "run" / "config.json").read_text())
    paths = [config["data"]["train"], config["data"]["test"], config["backbone"]["weights"]]
    assert paths == [str(home / name) for name in ("train.npz", "test.npz", "weights.npz")]
    wanted = np.asarray(promptax.load("run")(np.zeros((1, 8, 8), np.uint8)))

    away = tmp_path / "away"
    shutil.copytree(home / "run", away / "run")
    for file in ("weights.npz", "train.npz", "test.npz"):
        (home / file).rename(tmp_path / f"moved-{file}")
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved-weights.npz"
    capsys.readouterr()
    assert main(["predict", "away/run", str(album)]) == 2
    assert "sha256" in capsys.readouterr().err
    monkeypatch.setenv("PROMPTAX_WEIGHTS", str(tmp_path / "weights"))
    for place in (away / "run", away, tmp_path / "weights" / "any-tag", None):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(moved, place / "any-name.npz")
        learner = promptax.load("away/run", weights=moved if place is None else None)
        np.testing.assert_array_equal(learner(np.zeros((1, 8, 8), np.uint8)), wanted)
        assert learner.class_names == tuple("012345")
        if place is not None:
            (place / "any-name.npz").unlink()
    with pytest.raises(promptax.UserError, match="was trained on weights of sha256"):
        promptax.load("away/run", weights=tmp_path / "moved-test.npz")

    # To measure it again takes the data, which may lie beside the run by now.
    capsys.readouterr()
    assert main(["evaluate", "away/run", "--weights", str(moved)]) == 2
    assert "train.npz" in capsys.readouterr().err
    for file in ("train.npz", "test.npz"):
        shutil.copy(tmp_path / f"moved-{file}", away / file)
    assert main(["evaluate", "away/run", "--weights", str(moved)]) == 0
    assert "| instance |" in capsys.readouterr().out
    again = ["reproduce", "away/run", "--weights", str(moved), "--run", str(tmp_path / "again")]
    assert main(again) == 0
    assert "reproduced" in capsys.readouterr().out
