"""The `promptax` command, and `python -m promptax`.

Until the command line handles Ctrl-C itself, one that comes ends the process with a line of text
instead of a traceback. So nothing is imported here, nor in `promptax/__init__.py`, before that is
arranged.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_SIGINT = 2
"""The number of the signal: the module `signal`, which knows it, is not imported yet."""
_SIGNALLED = 128
"""Exit code after a signal, less its number."""


def _end_at_once(number: int, frame: "FrameType | None" = None) -> "NoReturn":
    try:
        os.write(2, b"promptax: interrupted.\n")
    finally:
        os._exit(_SIGNALLED + number)


try:
    import signal
except KeyboardInterrupt:
    _end_at_once(_SIGINT)


def main() -> int:
    """Run the command line and return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and not ignored, as in a background job of a shell
        signal.signal(signal.SIGINT, _end_at_once)
    from promptax.cli import main as answer

    code = answer(ready=lambda: signal.signal(signal.SIGINT, before))
    if code > _SIGNALLED:
        # All files are closed, and Python's own way to end runs into a segmentation fault if a
        # call of JAX was cut short.
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
