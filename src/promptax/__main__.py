"""The `promptax` command, and `python -m promptax`."""

import os
import signal
from types import FrameType


def main() -> int:
    """Run the command line and return its exit code.

    Until the command line handles Ctrl-C itself, one that comes while Python imports it ends the
    process with a line of text instead of a traceback.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as in a background job of a shell
        from promptax.cli import main as answer

        return answer()
    signal.signal(signal.SIGINT, _end_at_once)
    from promptax.cli import main as answer

    return answer(ready=lambda: signal.signal(signal.SIGINT, before))


def _end_at_once(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"promptax: interrupted.\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
