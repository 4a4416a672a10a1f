"""Ctrl-C and SIGTERM that always arrive, and never in the middle of something."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill`, batch systems and clouds send it before they take a machine away."""


class Interrupts:
    """A signal that waits for a good moment."""

    def __init__(self, next_moment: str):
        self._notice = f"promptax: {next_moment} (again: at once).\n"
        self._struck: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal has come."""
        return self._struck is not None

    def check(self) -> None:
        """Raise the signal that has come: `KeyboardInterrupt`, or `Terminated`."""
        if self._struck is not None:
            raise Terminated if self._struck == signal.SIGTERM else KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the next one of its kind takes its usual course, at once."""
        self._struck = number
        signal.signal(number, _DEFAULT[signal.Signals(number)])
        # Not `print`: it may be `print` that is interrupted here.
        os.write(2, self._notice.encode())


@contextmanager
def deferred_interrupts(next_moment: str = "stopping soon") -> Iterator[Interrupts]:
    """Hold SIGINT (Ctrl-C) and SIGTERM back until `check` is called, which then raises.

    Whoever sends one is told what comes next.

    Raised at once, as Python does, a Ctrl-C is lost where it strikes inside a callback that JAX
    has put into the garbage collector, and becomes another error inside the import of an
    extension. A second signal does not wait: SIGTERM ends the process as if there were no
    handler, wherever it is; Ctrl-C raises as soon as Python runs.
    """
    interrupts = Interrupts(next_moment)
    # Whoever has a handler of their own, or ignores a signal (`nohup`), keeps that.
    ours = [number for number, default in _DEFAULT.items() if signal.getsignal(number) is default]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number in ours:
            signal.signal(number, _DEFAULT[number])


_DEFAULT = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
