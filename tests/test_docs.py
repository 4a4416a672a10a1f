"""The documentation site and the notebooks: what they show exists and runs."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import promptax as px
from promptax.methods.registry import builtin_methods

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / ".github/site").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "scripts/notebooks").glob("*.py"))
SCRIPT = ROOT / "scripts/docs.py"
FOREIGN_FLAGS = {"--my_config", "--my_config.NAME", "--method"}
"""Flags of other programs, and the one that stands in the place of a method's name."""


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_every_public_name_that_is_shown_exists(path):
    names = set(re.findall(r"\bpx\.([\w.]*\w)", path.read_text()))
    for name in names:
        value = px
        for part in name.split("."):
            value = getattr(value, part)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_uses_the_public_interface_only(path):
    tree = ast.parse(path.read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or node.names[0].name for node in imported]
    assert [module for module in modules if module.startswith("promptax")] == ["promptax"]
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in private if name.startswith("_") and not name.endswith("__")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_preset_and_method_that_is_shown_exists(page):
    text = page.read_text()
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(px.PRESETS)
    assert set(re.findall(r"promptax train ([a-z]\w*)", text)) <= set(builtin_methods())


def shown_flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))


@pytest.fixture(scope="module")
def flags():
    """All flags of training by any method that the pages name, and of preparing ImageNet-R."""
    commands = [["train", name, "--help-all"] for name in ("l2p", "dualprompt", "ranpac")]
    commands.append(["train", "--help"])
    commands.append(["data", "prepare", "NAME", "--format", "imagenet-r", "--help"])
    found = set()
    for command in commands:
        words = [sys.executable, "-m", "promptax", *command]
        help = subprocess.run(words, capture_output=True, text=True, check=True)
        found |= shown_flags(help.stdout)
    return found | {flag.replace("--no-", "--", 1).replace(".no-", ".", 1) for flag in found}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_flag_that_is_shown_exists(page, flags):
    assert shown_flags(page.read_text()) - FOREIGN_FLAGS <= flags


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(path, tmp_path):
    # On the devices that there are, and compiled as for a user.
    ours = ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    run = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**env, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout
    assert not list(tmp_path.iterdir()), "a notebook writes into folders that it makes itself"


@pytest.fixture
def docs(monkeypatch):
    """The script that builds the site, as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("docs")


def test_links_lead_to_where_their_files_are_on_the_site(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(
        docs, "PAGES", {"README.md": "index.md", "part/README.md": "guides/part.md"}
    )
    for path, text in {
        "README.md": '[part](part/README.md#use) <img src="part/a.png"> [web](https://a.b/c.md)',
        "part/README.md": "[start](../README.md) [code](code.py) [below](#use)",
        "part/code.py": "print(1)",
        "part/a.png": "pixels",
    }.items():
        docs.write(tmp_path / "repository" / path, text)
    docs.assemble(tmp_path / "pages")
    page = lambda path: (tmp_path / "pages" / path).read_text()
    assert page("index.md") == (
        '[part](guides/part.md#use) <img src="files/part/a.png"> [web](https://a.b/c.md)'
    )
    assert page("guides/part.md") == (
        "[start](../index.md) [code](../files/part/code.py.md) [below](#use)"
    )
    assert "print(1)" in page("files/part/code.py.md")
    assert page("files/part/a.png") == "pixels"
    docs.write(tmp_path / "repository/README.md", "[gone](part/gone.md)")
    with pytest.raises(SystemExit, match=r"README.md links to 'part/gone.md', which is no file"):
        docs.assemble(tmp_path / "again")


def test_a_link_of_the_finished_site_that_leads_nowhere_is_found(docs, tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"></p><a href="b.html#there">b</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here"></a><img src="x.png">')
    assert sorted(docs.broken_links(tmp_path)) == [
        "a.html: b.html#there names no anchor.",
        "b.html: x.png leads nowhere.",
    ]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_public_name(docs, tmp_path):
    pytest.importorskip("mkdocs", reason="needs the `docs` extra")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for module in (px, px.data):
        page = (tmp_path / f"api/{module.__name__.rpartition('.')[2]}.html").read_text()
        names = [f"{module.__name__}.{name}" for name in module.__all__]
        missing = {name for name in names if f'id="{name}"' not in page}
        assert missing == set(docs.MODULES) - {"promptax"} if module is px else not missing


BROKEN = """
[an anchor that does not exist](concepts.md#gone)

[a name that does not exist][promptax.gone]
"""


@pytest.mark.slow
def test_a_broken_reference_ends_the_build(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the `docs` extra")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(SCRIPT.parent)!r}); import docs; "
        f"pages = pathlib.Path({str(tmp_path / 'pages')!r}); docs.assemble(pages); "
        f"(pages / 'faq.md').write_text({BROKEN!r}); "
        f"docs.build(pages, pathlib.Path({str(tmp_path / 'out')!r}), execute=False)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "does not contain an anchor '#gone'" in done.stderr
    assert "Could not find cross-reference target 'promptax.gone'" in done.stderr
