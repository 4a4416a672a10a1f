"""`promptax doctor`: all is well, or exit code 1 and what is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from promptax.cli import main
from promptax.runs import doctor


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory, and a data folder that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTAX_DATA", str(tmp_path / "data"))
    return tmp_path


def ask(capsys, *argv):
    code = main(["doctor", "--no-numbers", *argv])
    return code, capsys.readouterr().out


def problems(out):
    return [line for line in out.splitlines() if line.startswith("PROBLEM")]


def test_all_is_well_here(place, tiny, capsys):
    shutil.copy(tiny.weights, place / "vit.npz")
    shutil.copy(tiny.train, place / "images.npz")
    (place / "clip.safetensors").touch()
    code, out = ask(capsys)
    assert (code, problems(out)) == (0, []), out
    assert out.endswith("\nall is well\n")
    for words in (
        "8 x cpu (cpu)",
        "data 8, model 1; --batch-size has to divide by 8",
        f"prepared in {place / 'data'}: none",
        "glyph-vit (of the package); in this folder: clip.safetensors, vit.npz\n",
        "GB free",
    ):
        assert words in out


def test_a_data_folder_that_is_a_file_is_a_problem_and_the_other_checks_go_on(place, capsys):
    (place / "file").touch()
    code, out = ask(capsys, "--data-dir", "file")
    assert code == 1
    assert [line.split()[1] for line in problems(out)] == ["disk", "data"]
    assert "the data folder 'file' is a file" in out
    assert out.endswith("\nwrong: disk, data\n")
    assert "weights" in out


def test_a_damaged_prepared_set_is_named(place, capsys):
    (place / "data" / "flowers").mkdir(parents=True)
    (place / "data" / "flowers" / "meta.json").write_text("{")
    code, out = ask(capsys)
    assert code == 1
    assert "prepared in" in out
    assert "flowers/meta.json' is damaged" in problems(out)[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NEEDED", 10**18, "disk less than free make room memory end other programs"),
        ("NVIDIA", Path("/"), "devices NVIDIA GPU JAX does not use it promptax[cuda]"),
        ("_free_memory", lambda: 5, "memory less than 1.0 GB"),
    ],
)
def test_what_is_wrong_with_the_machine_is_told(name, value, words, monkeypatch, capsys):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(doctor, name, value)
    code, out = ask(capsys)
    assert code == 1
    told = "\n".join(problems(out))
    assert [word for word in words.split() if word not in told] == [], told


def test_a_folder_without_room_to_write_is_told(monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, out = ask(capsys)
    assert (code, "cannot be written: runs need another folder" in out) == (1, True)


def test_a_file_of_the_package_that_changed_is_told(place, monkeypatch, capsys):
    from importlib import resources

    box = Path(str(resources.files("promptax") / "data" / "bundled"))
    shutil.copytree(box, place / "package" / "data" / "bundled")
    file = place / "package" / "data" / "bundled" / "glyph_vit.npz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(resources, "files", lambda name: place / "package")
    code, out = ask(capsys)
    assert code == 1
    assert "glyph_vit.npz' is damaged: install promptax again" in out


def test_an_old_library_is_told(monkeypatch, capsys):
    from importlib import metadata

    real = metadata.version
    old = lambda name: "0.4.1" if name == "jax" else real(name)
    monkeypatch.setattr(metadata, "version", old)
    code, out = ask(capsys)
    assert code == 1
    assert "promptax needs jax>=" in problems(out)[0]


def test_a_check_that_breaks_is_a_finding(monkeypatch, capsys):
    def broken():
        raise ImportError("libfoo.so: no such file\nand more")

    monkeypatch.setattr(doctor, "_mesh", broken)
    code, out = ask(capsys)
    assert code == 1
    assert problems(out) == ["PROBLEM  mesh      ImportError libfoo.so: no such file"]


def train(losses=doctor.GOLDEN, digests=("a", "a")):
    results = iter(digests)
    return lambda: (np.array(losses), next(results))


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (train(), None),
        (train([*doctor.GOLDEN[:5], 0.03]), "expected"),
        (train([*doctor.GOLDEN[:5], np.nan]), "nan"),
        (train(digests=("a", "b")), "other bits the second time"),
    ],
)
def test_numbers_are_compared_with_golden_ones_and_with_themselves(fake, words, monkeypatch):
    monkeypatch.setattr(doctor, "_train", fake)
    monkeypatch.setattr(doctor, "_start_jax", lambda: [SimpleNamespace()])
    found = [finding for finding in doctor.examine() if finding.check == "numbers"]
    assert [finding.is_problem for finding in found[-1:]] == [words is not None]
    assert words is None or words in found[-1].text


@pytest.mark.slow
def test_the_golden_numbers_come_out_on_eight_devices(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "losses of 6 steps of L2P agree" in out
    assert "the same bits come out twice" in out


@pytest.mark.slow
def test_a_jax_without_devices_is_told_without_a_traceback(place):
    command = [sys.executable, "-m", "promptax", "doctor"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**doctor.os.environ, "JAX_PLATFORMS": "abacus"},
    )
    assert (done.returncode, done.stderr) == (1, "")
    wrong = [line.split()[1] for line in problems(done.stdout)]
    assert wrong == ["devices", "mesh", "numbers"]
    assert "JAX_PLATFORMS is abacus" in done.stdout
