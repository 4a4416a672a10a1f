"""Text for people: sizes with units, and foreign text that is safe to print."""

LONGEST = 600
"""Most characters of a piece of foreign text that are printed: a file name can have thousands."""

_SHOWN_AT_THE_START = 300
_SHOWN_AT_THE_END = 200

_BYTES_PER_UNIT = 1000
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def printable(text: object, longest: int | None = LONGEST) -> str:
    """Escape what comes from files or from the command line before it is printed.

    Names of files, leaves and classes can hold line breaks and the escape sequences by which a
    terminal changes its colours, its title or what is already on the screen. Characters that
    are not printable are shown as Python escapes (`\\x1b`), and texts of more than `longest`
    characters are shortened in their middle.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
    if longest is None or len(shown) <= longest:
        return shown
    return f"{shown[:_SHOWN_AT_THE_START]}...{shown[-_SHOWN_AT_THE_END:]}"


def format_bytes(count: int) -> str:
    """A number of bytes with the unit that suits it, such as `1.5 MB` or `12 bytes`."""
    if count < _BYTES_PER_UNIT:
        return f"{count} bytes"
    value = float(count)
    for unit in _UNITS:
        value /= _BYTES_PER_UNIT
        if value < _BYTES_PER_UNIT:
            return f"{value:.1f} {unit}"
    return f"{value:.1f} {_UNITS[-1]}"
