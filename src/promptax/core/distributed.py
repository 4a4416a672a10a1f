"""Several processes that train as one: how they meet, who writes, what happens if one is lost.

Every process runs the same program on its own devices. What one of them alone should do, it does
through `on_writer`.
"""

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jaxtyping import Array, Shaped

from promptax.core.errors import UserError
from promptax.core.settings import Distributed

_LENGTH = 2000  # bytes of a message between processes


def is_writer() -> bool:
    """Whether this process writes the run folder: one of all does."""
    return jax.process_index() == 0


def on_writer(action: Callable[[], None]) -> None:
    """Do something in the process that writes; the others wait.

    A `UserError` there is raised in all of them.
    """
    if jax.process_count() == 1:
        return action()
    problem = ""
    if is_writer():
        try:
            action()
        except UserError as error:
            problem = str(error)
    if problem := _broadcast(problem):
        raise UserError(problem)
    return None


def to_host(array: Array | np.ndarray) -> Shaped[np.ndarray, "..."]:
    """All of an array, of which this process may have a part only; all processes must ask."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(process_allgather(array, tiled=True))


def _broadcast(text: str) -> str:
    sent = np.zeros(_LENGTH, np.uint8)
    encoded = text.encode()[:_LENGTH]
    sent[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return bytes(np.asarray(broadcast_one_to_all(sent))).rstrip(b"\0").decode(errors="ignore")


@contextmanager
def joined(settings: Distributed) -> Iterator[None]:
    """Be one of the processes of a job inside the `with` block; alone, if there are no others.

    Must come before anything touches a device. Raises `UserError` where nothing says who the
    others are, and where one of them is lost. One that does not come, or is lost without a trace,
    ends this process after `timeout` seconds, with a message and an exit code that is not 0.
    """
    if not settings.wanted:
        yield
        return
    with _last_words(settings.timeout):
        _connect(settings)
        if not is_writer():
            logging.getLogger("promptax").setLevel(logging.WARNING)
        with _explained():
            yield
            jax.distributed.shutdown()


def _connect(settings: Distributed) -> None:
    alarm = threading.Timer(settings.timeout, _give_up, [settings])
    alarm.daemon = True
    alarm.start()
    try:
        # JAX aborts the program at its own time-out, so that one is never reached.
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process,
            initialization_timeout=settings.timeout + 60,
            heartbeat_timeout_seconds=settings.timeout,
            shutdown_timeout_seconds=settings.timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the other processes were not found ({reason}): start with Slurm, GKE, Cloud TPU or "
            "Open MPI, or say --distributed.coordinator, .processes and .process."
        ) from None
    finally:
        alarm.cancel()


def _give_up(settings: Distributed) -> None:
    number = "all" if settings.processes is None else f"all {settings.processes}"
    place = "" if settings.coordinator is None else f" at {settings.coordinator}"
    message = (
        f"promptax: {number} processes of the job did not meet{place} within {settings.timeout} s: "
        "is each of them started, with a number of its own, and can it reach this port?\n"
    )
    os.write(2, message.encode())
    os._exit(2)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a collective raises where a process is lost into a `UserError`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        if not re.search("Gloo|NCCL|UNAVAILABLE|heartbeat|coordination service", reason):
            raise
        raise UserError(
            f"another process of the job was lost ({reason[:200]}). Finished tasks are kept: start "
            "all of them again with --resume."
        ) from None


@contextmanager
def _last_words(timeout: int) -> Iterator[None]:
    """Let a small process say why this one is gone, where JAX aborts it from a thread.

    JAX does so, after many lines of its own, when the coordinator of the job is lost or another
    process has not answered for `timeout` seconds.
    """
    command = [sys.executable, "-S", "-E", "-c", _SPEAKER, _LAST.format(timeout)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as speaker:
        try:
            yield
        finally:
            assert speaker.stdin is not None
            speaker.stdin.write(b".")


_SPEAKER = "import sys; sys.stdin.read(1) or print(sys.argv[1], file=sys.stderr)"
_LAST = (
    "promptax: this process was killed, or another one of the job was lost or has not answered for "
    "{} s. Finished tasks are kept: start all of them again with --resume."
)
