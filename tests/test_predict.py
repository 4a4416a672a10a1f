"""`promptax predict`: class names and probabilities of image files."""

import numpy as np
import pytest
from PIL import Image

import promptax
from promptax.cli import main


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
