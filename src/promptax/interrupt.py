"""Ctrl-C that always arrives, and never in the middle of something."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Hold a Ctrl-C back until the function that this yields is called, which then raises it.

    Raised at once, as Python does, it is lost where it strikes inside a callback that JAX has
    put into the garbage collector, and becomes another error inside the import of an
    extension. A second Ctrl-C does not wait.
    """
    struck = threading.Event()

    def handle(number: int, frame: object) -> None:
        if struck.is_set():
            raise KeyboardInterrupt
        struck.set()
        # Not `print`: it may be `print` that is interrupted here.
        os.write(2, b"promptax: stopping (Ctrl-C again: at once).\n")

    def check() -> None:
        if struck.is_set():
            raise KeyboardInterrupt

    # Whoever has a handler of their own, or ignores Ctrl-C (`nohup`), keeps that.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
