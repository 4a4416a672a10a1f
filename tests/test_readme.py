"""What the README shows is what runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import promptax as px
from promptax.cli import doctor, evaluate, main, predict, report, reproduce, train, weights
from promptax.cli.data import fetch, info, prepare, verify
from promptax.methods import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    in_tables = re.findall(r"\| `(promptax data .*?)` \|", README)
    lines = [line for line in text.splitlines() if line.startswith("promptax ")]
    return [shlex.split(line, comments=True)[1:] for line in (*lines, *in_tables)]


AT_ONCE = (["presets"], ["data", "list"], ["weights", "list"])
"""Commands that only print what they know."""


class Started(Exception):
    """The command parsed, and would do its work now."""


def start(*_, **__):
    raise Started


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_a_command_that_is_shown_parses(argv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bitfit.py").write_text(blocks("python")[1])
    monkeypatch.setattr(registry, "_own_methods", {})  # each test has another file of this name
    monkeypatch.setattr(train, "train", start)
    monkeypatch.setattr(evaluate, "evaluate", start)
    monkeypatch.setattr(predict, "read_image", start)
    monkeypatch.setattr(predict, "load", lambda run, **_: SimpleNamespace(images=px.Images()))
    monkeypatch.setattr(report, "_results", start)
    monkeypatch.setattr(reproduce, "reproduce", start)
    monkeypatch.setattr(doctor, "examine", start)
    for name in ("read_weights", "read_backbone", "fetch_weights"):
        monkeypatch.setattr(weights, name, start)
    monkeypatch.setattr(fetch, "fetch", start)
    monkeypatch.setattr(prepare, "_prepare", start)
    monkeypatch.setattr(info, "open_dataset", start)
    monkeypatch.setattr(verify, "open_dataset", start)
    expected = SystemExit if "--help" in argv or argv in AT_ONCE else Started
    with pytest.raises(expected):
        raise SystemExit(main(argv))


def test_every_file_that_is_named_exists():
    for path in re.findall(r"(?:src|scripts|tests|\.github)/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=["library", "own-method"])
def test_the_library_examples_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_method_that_is_shown_passes_the_contract_by_the_command_that_is_shown(tmp_path):
    (tmp_path / "bitfit.py").write_text(blocks("python")[1])
    (line,) = re.findall("python (-m pytest .*--method.*)", README)
    words = [tmp_path / word if word.startswith("bitfit") else word for word in shlex.split(line)]
    words = [f"{word}" for word in words]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) >= 8
