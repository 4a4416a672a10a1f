"""What README and guides show is what runs."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from promptax.cli import doctor, evaluate, export, main, predict, report, reproduce, train, weights
from promptax.cli.data import fetch, info, prepare, verify
from promptax.methods import registry
from promptax.runs import runner

ROOT = Path(__file__).parents[1]
GUIDES = [
    ROOT / "README.md",
    *sorted((ROOT / "src").rglob("README.md")),
    ROOT / "scripts/README.md",
    ROOT / "tests/README.md",
    *sorted((ROOT / ".github/site").glob("*.md")),
]
METHOD_GUIDE = (ROOT / "src/promptax/methods/README.md").read_text()
RUN_GUIDE = (ROOT / "src/promptax/runs/README.md").read_text()
LONGEST_README = 180
"""Lines: the README is what a newcomer reads; the guides say the rest."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    """All command lines of `promptax` in all guides, each once."""
    found = {}
    for guide in GUIDES:
        text = guide.read_text()
        shown = "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
        in_tables = re.findall(r"\| `(promptax data .*?)` \|", text)
        lines = [line for line in shown if line.startswith("promptax ")]
        for line in (*lines, *in_tables):
            argv = shlex.split(line.partition(" > ")[0], comments=True)[1:]
            found[tuple(argv)] = argv
    return list(found.values())


def examples() -> list[Any]:
    """All Python examples of all guides, named after their files."""
    return [
        pytest.param(code, id=f"{guide.parent.name}-{number}")
        for guide in GUIDES
        for number, code in enumerate(blocks("python", guide.read_text()))
    ]


AT_ONCE = (
    ["presets"],
    ["data", "list"],
    ["weights", "list"],
    ["data", "info", "split-fashion-mnist", "--sample", "boot.png"],
)
"""Commands that only show what comes with the package."""


class Started(Exception):
    """The command parsed, and would do its work now."""


def start(*_, **__):
    raise Started


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_a_command_that_is_shown_parses(argv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bitfit.py").write_text(blocks("python", METHOD_GUIDE)[0])
    (tmp_path / "mine.yaml").write_text(blocks("yaml", RUN_GUIDE)[0])
    monkeypatch.setattr(registry, "_own_methods", {})  # each test has another file of this name
    monkeypatch.setattr(runner, "train", start)
    monkeypatch.setattr(train, "read_backbone", start)
    monkeypatch.setattr(train, "open_experiment", start)
    monkeypatch.setattr(evaluate, "evaluate", start)
    monkeypatch.setattr(predict, "load", start)
    monkeypatch.setattr(export, "load", start)
    monkeypatch.setattr(report, "_folders", start)
    monkeypatch.setattr(reproduce, "reproduce", start)
    monkeypatch.setattr(doctor, "examine", start)
    for name in ("read_weights", "read_backbone", "fetch_weights"):
        monkeypatch.setattr(weights, name, start)
    monkeypatch.setattr(fetch, "fetch", start)
    monkeypatch.setattr(prepare, "_prepare", start)
    monkeypatch.setattr(info, "open_dataset", start)
    monkeypatch.setattr(verify, "open_dataset", start)
    only_shows = {"--help", "--print-config"} & {*argv}
    expected = SystemExit if only_shows or argv in AT_ONCE else Started
    with pytest.raises(expected):
        raise SystemExit(main(argv))


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= LONGEST_README


def test_the_citation_names_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / ".github/CITATION.cff").read_text()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))
def test_every_file_that_is_named_exists(guide):
    text = guide.read_text()
    for path in re.findall(r"(?<![\w./-])(?:src|scripts|tests|\.github)/[\w./-]+\w", text):
        assert (ROOT / path).exists(), path
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    sources = re.findall(r"(?:src|srcset)=\"(.*?)\"", text)
    for link in (*links, *sources):
        if not link.startswith("https://"):
            assert (guide.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("code", examples())
def test_an_example_in_python_runs(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_method_that_is_shown_passes_the_contract_by_the_command_that_is_shown(tmp_path):
    (tmp_path / "bitfit.py").write_text(blocks("python", METHOD_GUIDE)[0])
    (line,) = re.findall("python (-m pytest .*--method.*)", METHOD_GUIDE)
    words = [tmp_path / word if word.startswith("bitfit") else word for word in shlex.split(line)]
    words = [f"{word}" for word in words]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) >= 8
