"""The help of a command, laid out from that of tyro: what people change first, without noise.

tyro knows all flags, their types, texts and defaults. This file takes its text apart and prints it
again: no `{None}|PATH`, no `(default: None)`, names for what a value is, and, if a command says
which flags are common, only those unless the user asks for all.
"""

import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

LAID_OUT_FOR = 80
"""Columns at which tyro puts one box below the other."""
_METAVARS = {
    "--run": "FOLDER",
    "--data-dir": "FOLDER",
    "--dir": "FOLDER",
    "--extend": "FOLDER",
    "--data.stream": "NAME",
    "--data.sets": "NAME|FOLDER",
    "--data.domains": "NAME",
    "--data.train": "FILE",
    "--data.test": "FILE",
    "--weights": "NAME|FILE",
    "--backbone": "NAME",
    "--figure": "FILE",
    "--grid": "FILE",
    "--method": "FILE:CLASS",
    "--config": "FILE",
}
"""The metavariable of a flag whose type does not explain its value."""
_OFF = "Switch this off (it is on by default): "
_ENTRY = "  "
_TEXT = "      "


@dataclass
class Entry:
    """A flag or a positional argument."""

    name: str
    """As tyro writes it: the flags, and what value they take."""
    lines: list[str] = field(default_factory=list)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags; none for a positional argument."""
        return tuple(re.findall(r"(?:^|, )(--?[\w.-]+)", self.name))

    def head(self) -> str:
        """The line above the text: the flags, and what they take."""
        if len(self.flags) == 2 and "no-" in self.flags[1]:
            is_on = "(default: True)" in self.text(raw=True)
            return self.flags[1] if is_on else self.flags[0]
        for flag in self.flags:
            if flag in _METAVARS:
                return re.sub(r"(PATH|STR)\b", _METAVARS[flag], _plain_kind(self.name))
        return _plain_kind(self.name)

    def text(self, *, raw: bool = False) -> str:
        """The description of the flag, and its default if that is informative."""
        text = " ".join(" ".join(self.lines).split())
        if raw:
            return text
        if len(self.flags) == 2 and "no-" in self.flags[1]:
            # Off is what one expects of a switch; of one that is on, the help shows how to end it.
            text = text.replace(" (default: False)", "")
            if "(default: True)" in text:
                text = _OFF + text.replace(" (default: True)", "")
        return re.sub(r" ?\(default:( None)?\s*\)", "", text)


@dataclass
class Box:
    """A group of flags under a title."""

    title: str
    about: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def laid_out(
    text: str, *, width: int, common: Collection[str] = (), order: Sequence[str] = ()
) -> str:
    """Lay out the help of tyro again.

    Args:
        text: What tyro printed, in `LAID_OUT_FOR` columns and without colours.
        width: Columns of the terminal.
        common: Flags to show; all if empty. Those of a group called `method options` always are.
        order: Titles of groups that come first.
    """
    before, _, rest = text.partition("╭")
    boxes = list(_boxes("╭" + rest))
    places = {title: place for place, title in enumerate(order)}
    boxes.sort(key=lambda box: places.get(box.title, len(places)))
    lines = [_plain_kind(line) for line in before.rstrip().splitlines()]
    lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
    hidden = 0
    for box in boxes:
        shown = [entry for entry in box.entries if _is_shown(entry, box, common)]
        hidden += len(box.entries) - len(shown)
        if not shown:
            continue
        lines += ["", f"{box.title}:"]
        about = " ".join(box.about)
        lines += textwrap.wrap(about, width, initial_indent=_ENTRY, subsequent_indent=_ENTRY)
        for entry in shown:
            lines.append(_ENTRY + entry.head())
            lines += textwrap.wrap(
                entry.text(),
                width,
                initial_indent=_TEXT,
                subsequent_indent=_TEXT,
                break_on_hyphens=False,
            )
    if hidden:
        lines += ["", f"--help-all shows {hidden} more options."]
    return "\n".join(lines)


def _is_shown(entry: Entry, box: Box, common: Collection[str]) -> bool:
    return not common or box.title == "method options" or bool({*entry.flags} & {*common})


def _boxes(text: str) -> Iterator[Box]:
    box = Box("")
    for line in text.splitlines():
        if line.startswith("╭"):
            box = Box(line.strip("╭─╮ "))
        elif line.startswith("╰"):
            yield box
        elif line.startswith("│"):
            _add(box, line[2:].rstrip("│ "))


def _add(box: Box, line: str) -> None:
    """Add a line inside of a frame to its box."""
    if re.fullmatch(r"─+", line):
        # What stood above the rule is about the whole group.
        box.about = [entry.name for entry in box.entries]
        box.entries = []
    elif line.strip().startswith("•"):
        # A sub-command: tyro writes the first words of its text beside it.
        name, _, text = line.strip("• ").partition("  ")
        box.entries = [entry for entry in box.entries if entry.name != "(required)"]
        box.entries.append(Entry(name, [text.strip()]))
    elif line.startswith(" ") and box.entries:
        box.entries[-1].lines.append(line.strip())
    elif line:
        # A short name has the beginning of its text beside it.
        name, _, text = line.partition("  ")
        box.entries.append(Entry(name, [text.strip()] if text else []))


def _plain_kind(text: str) -> str:
    """The metavariable of a value, without None: leaving out the flag means that."""
    text = text.replace("{None}|", "").replace("{None,", "{")
    text = re.sub(r"\{(\[[^{}]*\])\}", r"\1", text)
    return re.sub(r"\[?\[(\S+) \[\1 \.\.\.\]\]\]?", r"\1 ...", text)
