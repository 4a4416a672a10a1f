"""DomainNet (Peng et al., 2019): 345 classes in 6 domains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError
from promptax.core.files import read_text
from promptax.data.archive import AbstractTree, Folder, Forest, Zip, reading
from promptax.data.formats.format import Files, Listed, Listing
from promptax.data.formats.lists import AbstractNamedFormat

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


@dataclass(frozen=True)
class DomainNet(AbstractNamedFormat):
    """A folder with the six zips, or the folders that they contain, and the lists of images, such
    as `clipart_train.txt`. Groups are the domains, in alphabetic order."""

    size = 256

    def list(self, path: Path) -> Listing:
        """List the images of the lists, in their order."""
        train_lists = [path / f"{domain}_train.txt" for domain in DOMAINS]
        test_lists = [path / f"{domain}_test.txt" for domain in DOMAINS]
        train = [list(_lines(file)) for file in train_lists]
        test = [list(_lines(file)) for file in test_lists]
        class_names = _class_names([line for lines in (*train, *test) for line in lines], path)
        tree = _tree(path)
        listing = Listing(
            train=_part(tree, train),
            test=_part(tree, test),
            class_names=class_names,
            files=(*tree.files, *train_lists, *test_lists),
            group_names=DOMAINS,
        )
        return self.divided(listing)


def _lines(file: Path) -> Iterator[tuple[str, int]]:
    """The image and the class number of each line of a list."""
    if not file.is_file():
        raise UserError(f"'{file}' not found: DomainNet needs the lists beside the zips.")
    with reading(file):
        for line in read_text(file, "list").splitlines():
            if line.strip():
                name, label = line.rsplit(maxsplit=1)
                yield name, int(label)


def _class_names(lines: Sequence[tuple[str, int]], path: Path) -> tuple[str, ...]:
    """The names of the class folders, by class number."""
    # An image is named as `domain/class/file`.
    pairs = sorted({(label, name.split("/")[-2]) for name, label in lines if name.count("/") >= 2})
    labels = [label for label, _ in pairs]
    names = [name for _, name in pairs]
    if labels != list(range(len(set(names)))) or not names:
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
    """The examples in the lists of all domains."""
    present = set(tree.names)
    names = [name for lines in domains for name, _ in lines]
    for name in names:
        if name not in present:
            raise UserError(f"'{name}' is in a list, but not in '{tree.files[0].parent}'.")
    return Listed(
        images=Files(tree, names),
        labels=[label for lines in domains for _, label in lines],
        names=names,
        groups=[number for number, lines in enumerate(domains) for _ in lines],
    )
