"""The help of a command, laid out from that of tyro: what people change first, without noise.

tyro knows all flags, their types, texts and defaults. This file takes its text apart and prints it
again: no `{None}|PATH`, no `(default: None)`, names for what a value is, and, if a command says
which flags are common, only those unless the user asks for all.
"""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    "--backbone": "NAME",
    "--method": "FILE:CLASS",
    "--distributed.coordinator": "HOST:PORT",
    "--list": "FILE",
}
"""The metavariable of a flag whose type does not explain its value."""
_METAVARS_OF_TEXTS = {"--weights": "NAME|FILE"}
"""The same for flags that take a path in some commands and a text in others."""
_TITLES = {"eval options": "evaluation options", "form options": "format options"}
"""Titles that say more than the names of fields do."""
_TURNED_OFF = " It is on by default, and this flag turns it off."
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
        return _with_metavars(self.name, self.flags)

    def text(self, *, raw: bool = False) -> str:
        """The description of the flag, and its default if that is informative."""
        text = " ".join(" ".join(self.lines).split())
        if raw:
            return text
        if len(self.flags) == 2 and "no-" in self.flags[1]:
            # A switch is expected to be off by default. If one is on, the help shows how to turn it
            # off.
            text = text.replace(" (default: False)", "")
            if "(default: True)" in text:
                text = text.replace(" (default: True)", _TURNED_OFF)
        if "(default: None)" in text:
            # On the command line, nobody gives None: one leaves out the flag.
            text = re.sub(r"\bif None\b", "by default", text)
            text = re.sub(r"\bIf None\b", "By default", text)
            text = re.sub(r"(?<=[;,] )None: ", "by default: ", text)
            text = re.sub(r"(?<=[.] )None: ", "By default: ", text)
        text = re.sub(r"(\d\.\d{4})\d{8,}", r"\1", text)  # 1.3333333333333333
        return re.sub(r" ?\(default:( None)?\s*\)| ?\(required\)", "", text)


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
    heads = {" | ".join(entry.flags): entry.head() for box in boxes for entry in box.entries}
    lines = [_plain_usage(line, heads) for line in before.rstrip().splitlines()]
    lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
    # tyro leaves two empty lines above a paragraph that begins with code.
    lines = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    hidden = 0
    for box in boxes:
        shown = [entry for entry in box.entries if _is_shown(entry, box, common)]
        hidden += len(box.entries) - len(shown)
        if not shown:
            continue
        lines += ["", f"{_TITLES.get(box.title, box.title)}:"]
        about = " ".join(box.about)
        lines += textwrap.wrap(about, width, initial_indent=_ENTRY, subsequent_indent=_ENTRY)
        for entry in shown:
            lines.append(_ENTRY + entry.head())
            lines += textwrap.wrap(
                _in_flags(entry.text(), _flags_by_setting(box)),
                width,
                initial_indent=_TEXT,
                subsequent_indent=_TEXT,
                break_on_hyphens=False,
            )
    if hidden:
        lines += ["", f"--help-all shows {hidden} more options."]
    return "\n".join(lines)


def _flags_by_setting(box: Box) -> dict[str, str]:
    """The flag of each setting of a group, by the name that the setting has in Python."""
    flags = [entry.flags[0] for entry in box.entries if entry.flags]
    return {re.split(r"[.]|--", flag)[-1].replace("-", "_"): flag for flag in flags}


def _in_flags(text: str, named: Mapping[str, str]) -> str:
    """A text with settings as they are written on the command line: `top_k` becomes `--top-k`."""
    return re.sub(r"`(\w+)`", lambda found: f"`{named.get(found[1], found[1])}`", text)


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
    elif box.entries and "{" in box.entries[-1].name and "}" not in box.entries[-1].name:
        # A list of choices that tyro has broken, as it does in a narrow box.
        box.entries[-1].name += line.strip()
    elif line.startswith(" ") and box.entries:
        box.entries[-1].lines.append(line.strip())
    elif line:
        # A short name has the beginning of its text beside it.
        name, _, text = line.partition("  ")
        box.entries.append(Entry(name, [text.strip()] if text else []))


def _plain_usage(line: str, heads: Mapping[str, str]) -> str:
    """A line of the usage, with switches and metavariables as the entries below have them.

    Args:
        line: The line.
        heads: The switches that the entries show, by what tyro writes: `--x | --no-x`.
    """
    line = re.sub(r"\[(--\S+ \| --\S+)\]", lambda found: f"[{heads.get(found[1], found[1])}]", line)
    with_flag = r"(--[\w.-]+)( \S*(?:PATH|STR)\b)"
    return re.sub(with_flag, lambda found: _with_metavars(found[0], (found[1],)), _plain_kind(line))


def _with_metavars(text: str, flags: Sequence[str]) -> str:
    """A flag with a metavariable that says what its value is."""
    text = _plain_kind(text)
    for flag in flags:
        if flag in _METAVARS:
            return re.sub(r"(PATH|STR)\b", _METAVARS[flag], text)
        if flag in _METAVARS_OF_TEXTS:
            text = re.sub(r"STR\b", _METAVARS_OF_TEXTS[flag], text)
    return re.sub(r"STR\b", "TEXT", re.sub(r"PATH\b", "FILE", text)) if flags else text


def _plain_kind(text: str) -> str:
    """The metavariable of a value, without None: leaving out the flag means that."""
    text = text.replace("{None}|", "").replace("{None,", "{")
    text = re.sub(r"\{(\[[^{}]*\])\}", r"\1", text)
    return re.sub(r"\[?\[(\S+) \[\1 \.\.\.\]\]\]?", r"\1 ...", text)
