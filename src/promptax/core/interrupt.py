"""Ctrl-C, SIGTERM and SIGHUP that always arrive, and never in the middle of something."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STDOUT = 1
STDERR = 2
"""File descriptors of the standard streams."""
_A_MOMENT = 0.02  # seconds


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems and clouds send it before they take a machine away, or SIGHUP,
    as the system sends it when the terminal or the connection to it is closed."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class Interrupts:
    """Remembers a signal until there is a good moment to raise it."""

    def __init__(self, next_moment: str):
        self._notice = f"promptax: {next_moment} (again: at once).\n"
        self._received: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    def check(self) -> None:
        """Raise the signal that has come: `KeyboardInterrupt`, or `Terminated`."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise Terminated(self._received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; the next one of its kind takes its usual course, at once."""
        self._received = number
        signal.signal(number, _DEFAULT[signal.Signals(number)])
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        # Not `print`: it may be `print` that is interrupted here.
        with suppress(OSError):
            os.write(STDERR, self._notice.encode())


@contextmanager
def deferred_interrupts(next_moment: str = "stopping soon") -> Iterator[Interrupts]:
    """Hold signals that end a process back until `check` is called, which then raises.

    The signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP. The user is told what happens next.

    If a Ctrl-C were raised at once, as Python does, it would be lost inside a callback that JAX has
    put into the garbage collector, and would become another error inside the import of an
    extension. A second signal does not wait: SIGTERM and SIGHUP end the process as if there were no
    handler, wherever it is; Ctrl-C raises as soon as Python runs.
    """
    interrupts = Interrupts(next_moment)
    # A caller that has a handler of its own, or ignores a signal (`nohup`), keeps that.
    ours = [number for number, default in _DEFAULT.items() if signal.getsignal(number) is default]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # Python installs handlers from the main thread only
    for number in ours:
        signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number in ours:
            signal.signal(number, _DEFAULT[number])


@contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Raise a Ctrl-C again that Python could only ignore, and keep it off the screen.

    Nothing can be raised out of a destructor or a callback of the garbage collector, and JAX has
    put such a callback there.
    """
    before = sys.unraisablehook

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if ignored.exc_type is KeyboardInterrupt:
            # Not from here, where it would be ignored as well.
            again = threading.Timer(_A_MOMENT, _thread.interrupt_main)
            again.daemon = True
            again.start()
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _leave_closed_terminal() -> None:
    """Send the output to nowhere if the terminal is gone.

    Every write to it would fail from now on, and the first one would end the run before it has
    saved its checkpoint.
    """
    for stream in (STDOUT, STDERR):
        try:
            os.write(stream, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


_DEFAULT = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
