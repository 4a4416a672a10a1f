"""How figures look: pages for light and dark, and one colour and marker for each method.

A method looks the same in every figure. Its look follows from its name alone, so that a figure of
three methods and one of sixteen agree. There are more methods than colours that everybody can tell
apart, so methods that share a colour have different markers.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import rc_context

Theme = Literal["light", "dark"]
PAGES: Mapping[Theme, tuple[str, str]] = {
    "light": ("#ffffff", "#1f2328"),
    "dark": ("#0d1117", "#e6edf3"),
}
"""Background and ink of each page."""

# The palette of Okabe & Ito (2008), which the colour-blind can tell apart, without its black and
# yellow, of which one is lost on a dark page and the other on a white one.
_ORANGE = "#E69F00"
_SKY = "#56B4E9"
_GREEN = "#009E73"
_BLUE = "#3B82D6"  # lighter than published (#0072B2), for dark pages
_RED = "#D55E00"
_PINK = "#CC79A7"
_GREY = "#8C8C8C"
_COLOURS = (_ORANGE, _SKY, _GREEN, _BLUE, _RED, _PINK, _GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "<")


@dataclass(frozen=True)
class Look:
    """The colour and marker of a method."""

    colour: str
    marker: str


_LOOKS: Mapping[str, Look] = {
    "l2p": Look(_SKY, "o"),
    "dualprompt": Look(_GREEN, "s"),
    "coda": Look(_PINK, "^"),
    "sprompts": Look(_BLUE, "D"),
    "hide": Look(_ORANGE, "P"),
    "finetune": Look(_RED, "v"),
    "linear": Look(_GREY, "o"),
    "ncm": Look(_GREY, "D"),
    "ranpac": Look(_GREEN, "D"),
    "er": Look(_PINK, "s"),
    "derpp": Look(_PINK, "v"),
    "ewc": Look(_ORANGE, "v"),
    "lwf": Look(_ORANGE, "s"),
    "slca": Look(_RED, "o"),
    "sldc": Look(_RED, "D"),
}
_FREE = tuple(
    Look(colour, marker)
    for colour in _COLOURS
    for marker in _MARKERS
    if Look(colour, marker) not in _LOOKS.values()
)
_ADDITIONS = ("-replay", "-joint")
"""The part of a run's name behind the name of its method."""


def look_of(method: str) -> Look:
    """The look of a method by its name in results; that of its base if it has an addition."""
    base = method
    for addition in _ADDITIONS:
        base = base.removesuffix(addition)
    if base in _LOOKS:
        return _LOOKS[base]
    # A method of a user's own: some look that no other has here, but always the same one.
    return _FREE[zlib.crc32(base.encode()) % len(_FREE)]


def style(theme: Theme) -> Any:
    """The settings of matplotlib for a light or a dark page, as a context manager."""
    page, ink = PAGES[theme]
    ink_keys = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    return rc_context(
        {
            **dict.fromkeys(ink_keys, ink),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.size": 9,
        }
    )
