"""DomainNet (Peng et al., 2019): 345 classes in 6 domains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.data.archive import AbstractTree, Folder, Forest, Zip, reading
from promptax.data.formats.format import AbstractFormat, Files, Listed, Listing

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


@dataclass(frozen=True)
class DomainNet(AbstractFormat):
    """A folder with the six zips (or what they extract to) and their lists, such as
    `clipart_train.txt`. Groups are the domains, in alphabetic order."""

    size = 256

    def list(self, path: Path) -> Listing:
        """The images of the lists, in their order."""
        lists = [path / f"{domain}_{part}.txt" for part in ("train", "test") for domain in DOMAINS]
        lines = [list(_lines(file)) for file in lists]
        names = _class_names([line for part in lines for line in part], path)
        tree = _tree(path)
        train, test = (_part(tree, part) for part in (lines[:6], lines[6:]))
        return Listing(train, test, names, (*tree.files, *lists), DOMAINS)


def _lines(file: Path) -> Iterator[tuple[str, int]]:
    if not file.is_file():
        raise UserError(f"'{file}' not found: DomainNet needs the lists beside the zips.")
    with reading(file):
        for line in file.read_text("utf-8-sig").splitlines():
            if line.strip():
                name, label = line.rsplit(maxsplit=1)
                yield name, int(label)


def _class_names(lines: Sequence[tuple[str, int]], path: Path) -> tuple[str, ...]:
    found = {(label, name.split("/")[-2]) for name, label in lines if name.count("/") >= 2}
    names = [name for _, name in sorted(found)]
    if [label for label, _ in sorted(found)] != list(range(len(set(names)))) or not names:
        raise UserError(
            f"the lists in '{path}' should give each class folder one label, from 0 without gaps."
        )
    return tuple(names)


def _tree(path: Path) -> AbstractTree:
    zips = [path / f"{domain}.zip" for domain in DOMAINS]
    if not any(file.is_file() for file in zips):
        return Folder(path)
    for file in zips:
        if not file.is_file():
            raise UserError(f"'{file}' not found.")
    return Forest([Zip(file) for file in zips])


def _part(tree: AbstractTree, domains: Sequence[Sequence[tuple[str, int]]]) -> Listed:
    held = set(tree.names)
    names = [name for domain in domains for name, _ in domain]
    for name in names:
        if name not in held:
            raise UserError(f"'{name}' is in a list, but not in '{tree.files[0].parent}'.")
    groups = [number for number, domain in enumerate(domains) for _ in domain]
    return Listed(Files(tree, names), [label for d in domains for _, label in d], names, groups)
