"""Build the documentation site: `python scripts/docs.py --out build/site`.

Pages come from where they are kept: the guides beside the code, the notebooks in
`scripts/notebooks`, the pages that belong to the site alone in `.github/site`, and the docstrings
of all public names. Links between them are adapted, and a link to any other file of the repository
leads to a page that shows the file. The build fails on a broken link, on a name that a docstring
refers to and that does not exist, and on arguments that a docstring documents and a function lacks.
"""

import argparse
import ast
import functools
import importlib.util
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/promptax"
PAGES = {
    "README.md": "index.md",
    ".github/CHANGELOG.md": "changelog.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    "scripts/README.md": "guides/scripts.md",
    "tests/README.md": "guides/tests.md",
    "src/promptax/runs/presets/README.md": "guides/presets.md",
    **{
        f"src/promptax/{part}/README.md": f"guides/{part}.md"
        for part in ("data", "methods", "nn", "runs", "training")
    },
    **{
        str(path.relative_to(ROOT)): path.name for path in sorted((ROOT / ".github/site").glob("*"))
    },
    **{
        str(path.relative_to(ROOT)): f"notebooks/{path.name}"
        for path in sorted((ROOT / "scripts/notebooks").glob("*.py"))
    },
}
"""Where each file of the repository is on the site."""
MODULES = {
    "promptax": "Train, measure, save and load.",
    "promptax.data": "Data sets, streams of tasks, and the preparation of images.",
    "promptax.methods": "The methods, and what a method of your own is made of.",
    "promptax.nn": "Backbones and their weights, prompts, adapters and heads.",
}
"""The public modules, with a line for each page."""
_IMAGES = (".png", ".svg")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".jsonl": "json"}
_LINK = re.compile(r"(\]\(|(?:src|srcset)=\")([^)\s\"]+)")
"""A link of Markdown, or an image of HTML: what is before the address, and the address."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build/site", help="folder of the site")
    parser.add_argument(
        "--execute", action="store_true", help="run the notebooks and show their results"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        assemble(Path(folder))
        build(Path(folder), arguments.out, execute=arguments.execute)
    broken = list(broken_links(arguments.out))
    for problem in broken:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if broken else 0


def assemble(folder: Path) -> None:
    """Write all pages of the site, as MkDocs reads them, into a folder."""
    places = dict(PAGES)
    for source in PAGES:
        lines = (ROOT / source).read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            if source.endswith(".md") or line.startswith("#"):  # the text of a notebook
                change = functools.partial(_moved, source=source, places=places)
                lines[number] = _LINK.sub(change, line)
        write(folder / PAGES[source], "".join(lines))
    for source in places.keys() - PAGES.keys():
        _copy(ROOT / source, folder / places[source])
    for module, summary in MODULES.items():
        write(folder / f"api/{module.rpartition('.')[2]}.md", api_page(module, summary))


def _moved(match: re.Match[str], source: str, places: dict[str, str]) -> str:
    """A link of a file as it has to be on the site; `places` learns of files that it leads to."""
    before, address = match.groups()
    path, hash_sign, anchor = address.partition("#")
    if urlsplit(address).scheme or not path:
        return match[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / target).is_file():
        raise SystemExit(f"error: {source} links to '{address}', which is no file.")
    if target not in places:
        ending = "" if target.endswith((*_IMAGES, ".md")) else ".md"
        places[target] = f"files/{target.removeprefix('.')}{ending}"
    moved = posixpath.relpath(places[target], posixpath.dirname(PAGES[source]) or ".")
    if source.endswith(".py"):  # MkDocs does not adapt the links of notebooks
        moved = f"{posixpath.splitext(moved)[0]}.html"
    return f"{before}{moved}{hash_sign}{anchor}"


def _copy(source: Path, target: Path) -> None:
    """Copy an image, or write a page that shows a file of another kind."""
    if target.suffix in _IMAGES:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return
    language = _LANGUAGES.get(source.suffix, "text")
    text = source.read_text()
    if source.suffix == ".md":
        write(target, text)
    else:
        name = source.relative_to(ROOT)
        write(target, f"# `{name}`\n\n``````{language}\n{text}\n``````\n")


def write(path: Path, text: str) -> None:
    """Write a file, and make the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def public_names(module: str) -> list[str]:
    """The names that a module exports, in their order: `from x import name as name`."""
    path = PACKAGE.parent.joinpath(*module.split("."), "__init__.py")
    return [
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]


def api_page(module: str, summary: str) -> str:
    """The page of a public module, on which its docstrings are to be put."""
    names = [name for name in public_names(module) if f"{module}.{name}" not in MODULES]
    sections = [f"::: {module}.{name}" for name in names]
    return "\n\n".join([f"# `{module}`", summary, *sections, ""])


def build(pages: Path, out: Path, *, execute: bool) -> None:
    """Make the site from its pages; any warning is an error."""
    if importlib.util.find_spec("mkdocs") is None:
        raise SystemExit("error: MkDocs is missing: run `pip install -e '.[docs]'`.")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += [
        "--config-file",
        str(ROOT / ".github/mkdocs.yml"),
        "--site-dir",
        str(out.absolute()),
    ]
    settings = {"DOCS_DIR": str(pages), "EXECUTE_NOTEBOOKS": str(execute).lower()}
    settings["NO_MKDOCS_2_WARNING"] = "1"  # an advertisement of Material for MkDocs
    done = subprocess.run(command, env={**os.environ, **settings})
    if done.returncode != 0:
        raise SystemExit(done.returncode)


class _Addresses(HTMLParser):
    """Collects the addresses and the anchors of a page."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.addresses += [given[name] for name in ("href", "src", "srcset") if name in given]


def broken_links(site: Path) -> Iterator[str]:
    """The links of the finished site that lead to no file or no anchor of it."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = _Addresses()
        pages[path].feed(path.read_text())
    for path, page in pages.items():
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = path
            if parts.path:
                target = Path(os.path.normpath(path.parent / unquote(parts.path)))
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(site)}: {address} leads nowhere."
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{path.relative_to(site)}: {address} names no anchor."


if __name__ == "__main__":
    raise SystemExit(main())
