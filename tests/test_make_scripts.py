"""The scripts that made what is in the package refuse what they cannot work with, in a line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

SCRIPTS = Path(__file__).parents[1] / "scripts"


def refused(script, *flags):
    """The one line on stderr of a script that ends with exit code 2."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("what", ["pretrain", "split", "domains"])
def test_without_fonts_the_package_is_named_that_has_them(what, tmp_path):
    line = refused("make_glyphs.py", "--what", what, "--fonts", tmp_path)
    assert line.startswith("error: no ")
    assert "apt-get install " in line


def glyphs(path, **changed):
    arrays = {
        "images": np.zeros((80, 40, 40), np.uint8),
        "labels": np.arange(80),
        "class_names": np.array([f"{n}" for n in range(80)]),
    }
    np.savez(path, **(arrays | changed))


@pytest.mark.parametrize("kind", toy.slow_except(["cut"], ["cut", "missing", "empty", "foreign"]))
def test_damaged_glyphs_are_not_trained_on(kind, tmp_path):
    path = tmp_path / "glyphs.npz"
    glyphs(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "missing":
        path.unlink()
    elif kind == "empty":
        glyphs(path, images=np.zeros((0, 40, 40), np.uint8), labels=np.zeros(0, int))
    else:
        np.savez(path, weights=np.zeros(3))
    line = refused("pretrain.py", "--glyphs", path, "--run", tmp_path / "run")
    assert str(path) in line
    assert not (tmp_path / "run").exists()
