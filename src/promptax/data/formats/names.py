"""Images that are named by lists and tables, found among the files of a set."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath

from promptax.core.errors import UserError
from promptax.core.text import printable

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif"),
)
"""Of the names of image files."""
SHOWN = 3
"""Most names that a message lists."""


class NamedImages:
    """The images of a set, by paths that need not begin where the names of the files do.

    Lists are written for one machine or one folder: `n01443537/art_0.jpg` and
    `/data/imagenet-r/n01443537/art_0.jpg` both stand for the file
    `imagenet-r/n01443537/art_0.jpg` of an archive. So a path stands for an image if one is the end
    of the other; the folder around the whole set does not count. Tables often leave out the ending
    of the file names, such as `.jpg`, which then does not count either.

    Folders that stand only in the paths must be the same in all paths of a list. Otherwise
    `b/1.jpg`, of which there is no image, would stand for the `1.jpg` of another folder.
    """

    def __init__(self, names: Sequence[str]):
        """Index the full names of all images."""
        self.names = names
        top = _common_folder(names)
        self.short_names = [name[len(top) :] for name in names]
        """The names without the folder that is around the whole set."""
        self._by_ending: dict[str, list[int]] = defaultdict(list)
        for position, name in enumerate(self.short_names):
            self._by_ending[_last_parts(name, 2)].append(position)

    def find(self, path: str) -> list[int]:
        """The positions of the images that a path stands for."""
        path = _normalised(path)
        found = self._ends_alike(path)
        if not found and PurePosixPath(path).suffix.lower() not in ENDINGS:
            found = self._without_endings._ends_alike(path)
        return found

    def resolve(self, paths: Sequence[str], source: str) -> list[int]:
        """The positions of the images that paths stand for, each a different one.

        Args:
            paths: As they are in a list or a table.
            source: The list or table, for messages, such as `"list 'a.txt'"`.

        Raises:
            UserError: Paths stand for no image, for several, or for the same one; or they begin
                with different folders that the set does not have.
        """
        resolved: dict[int, None] = {}  # which keeps the order
        path_of_folder: dict[str, str] = {}  # one path for each folder that only paths have
        unknown = []
        for path in paths:
            found = self.find(path)
            if not found:
                unknown.append(path)
                continue
            if len(found) > 1:
                several = some_names([self.names[position] for position in found])
                raise UserError(
                    f"'{printable(path)}' of {source} can be any of {len(found)} images, such as "
                    f"{several}: give more of its path."
                )
            if found[0] in resolved:
                raise UserError(f"image '{printable(self.names[found[0]])}' is in {source} twice.")
            resolved[found[0]] = None
            path_of_folder.setdefault(self._foreign_folder(path, found[0]), path)
        if unknown:
            alike = f", with names such as '{printable(self.names[0])}'" if self.names else ""
            raise UserError(
                f"{len(unknown):,} of the {len(paths):,} images of {source} are not in the set, "
                f"such as {some_names(unknown)}. The set has {len(self.names):,} images{alike}."
            )
        if len(path_of_folder) > 1:
            raise UserError(
                f"paths of {source}, such as {some_names(list(path_of_folder.values()))}, begin "
                "with different folders that the set does not have, so they could stand for other "
                f"images: give names as in the set, such as '{printable(self.names[0])}'."
            )
        return list(resolved)

    def _foreign_folder(self, path: str, position: int) -> str:
        """What a path has before the name of its image, with a slash at its end."""
        path = _normalised(path)
        name = self.names[position]
        short_name = self.short_names[position]
        if not _is_end(path, name) and not _is_end(short_name, path):
            # The path has been found without the ending of the name.
            name = name.rpartition(".")[0]
            short_name = short_name.rpartition(".")[0]
        return "" if _is_end(path, name) else path.removesuffix(short_name)

    def _ends_alike(self, path: str) -> list[int]:
        if "/" in path:
            own_folder = self._by_ending.get(_last_parts(path, 2), [])
            candidates = [*own_folder, *self._by_ending.get(_last_parts(path, 1), [])]
        else:
            candidates = self._by_file_name.get(path, [])
        exact = [at for at in candidates if path in (self.short_names[at], self.names[at])]
        if exact:
            return exact
        return [
            at
            for at in candidates
            if _is_end(path, self.names[at]) or _is_end(self.short_names[at], path)
        ]

    @cached_property
    def _by_file_name(self) -> dict[str, list[int]]:
        by_name = defaultdict(list)
        for position, name in enumerate(self.short_names):
            by_name[_last_parts(name, 1)].append(position)
        return by_name

    @cached_property
    def _without_endings(self) -> "NamedImages":
        return NamedImages([name.rpartition(".")[0] for name in self.names])


def some_names(names: Sequence[str]) -> str:
    """The first of some names, in quotes, for a message."""
    return ", ".join(f"'{printable(name)}'" for name in names[:SHOWN])


def _normalised(path: str) -> str:
    return re.sub(r"(?<![^/])\./", "", path.replace("\\", "/"))  # without folders called "."


def _last_parts(path: str, count: int) -> str:
    return "/".join(path.rsplit("/", count)[-count:])


def _is_end(end: str, path: str) -> bool:
    """Whether the last parts of a path are `end`."""
    return f"/{path}".endswith(f"/{end}")


def _common_folder(names: Sequence[str]) -> str:
    """The innermost folder that all files are in, with a slash at its end; "" if there is none."""
    if not names:
        return ""
    # All names lie between the least and the greatest one, and begin as these two do.
    least = min(names).split("/")[:-1]
    greatest = max(names).split("/")[:-1]
    common = 0
    for one, other in zip(least, greatest, strict=False):
        if one != other:
            break
        common += 1
    return "".join(f"{part}/" for part in least[:common])
