"""Several processes that train as one: how they meet, which one writes, and what happens when one
is lost.

Every process runs the same program on its own devices. Only process 0 writes files; see
`on_writer`.
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

from promptax.core.cluster import how_to_join, local_device_ids, neighbours_of, visible_gpus
from promptax.core.errors import UserError
from promptax.core.interrupt import STDERR
from promptax.core.settings import Distributed

LOGGER = logging.getLogger("promptax")

_MESSAGE_BYTES = 2000  # of an error that one process reports to the others
_EXTRA_TIMEOUT = 60  # seconds by which JAX waits longer than we do
_REASON_LENGTH = 200  # characters of a message of JAX that are passed on to the user
_EXIT_CODE = 2


def is_writer() -> bool:
    """Whether this process is the one that writes the run folder."""
    return jax.process_index() == 0


def on_writer(action: Callable[[], None]) -> None:
    """Run an action in the process that writes, while the others wait for it.

    A `UserError` that it raises is raised in all processes, so that they end together.
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
    """Copy a whole array to the host, even if this process has only a part of it.

    All processes must call it, since those parts are exchanged.
    """
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(process_allgather(array, tiled=True))


def _broadcast(text: str) -> str:
    # Arrays of one fixed size are all that a collective can send.
    sent = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:_MESSAGE_BYTES]
    sent[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return bytes(np.asarray(broadcast_one_to_all(sent))).rstrip(b"\0").decode(errors="ignore")


@contextmanager
def joined(settings: Distributed) -> Iterator[None]:
    """Join the other processes of a job inside the `with` block, if there are any.

    It must come before anything touches a device. A process that does not come, or is lost without
    a trace, ends this one after `timeout` seconds, with a message and an exit code that is not 0.

    Raises `UserError` if the other processes cannot be found, and if one of them is lost.
    """
    if not settings.wanted:
        yield
        return
    with _watched_by_speaker(settings.timeout):
        _connect(settings)
        _say_devices()
        if not is_writer():
            logging.getLogger("promptax").setLevel(logging.WARNING)
        with _loss_explained():
            yield
            jax.distributed.shutdown()


def _say_devices() -> None:
    """Say which devices are used, and which GPUs of this node stay idle."""
    used = jax.local_device_count()
    line = f"process {jax.process_index()} of {jax.process_count()}: {used} devices"
    gpus = visible_gpus(os.environ)
    neighbours = neighbours_of(os.environ)
    alone = neighbours is None or neighbours.count == 1
    if jax.default_backend() == "gpu" and alone and used < gpus:
        line += f"; {gpus - used} of {gpus} GPUs of this node stay idle"
    LOGGER.info(line)


def _connect(settings: Distributed) -> None:
    gpus = visible_gpus(os.environ)
    device_ids = local_device_ids(os.environ, gpus)
    alarm = threading.Timer(settings.timeout, _give_up, [settings])
    alarm.daemon = True
    alarm.start()
    try:
        # JAX aborts the program at its own time-out, with many lines: ours must come before it.
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process,
            local_device_ids=device_ids,
            initialization_timeout=settings.timeout + _EXTRA_TIMEOUT,
            heartbeat_timeout_seconds=settings.timeout,
            shutdown_timeout_seconds=settings.timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).split("\n")[0][:_REASON_LENGTH]
        raise UserError(
            f"the other processes were not found ({reason}): {how_to_join(os.environ)}."
        ) from None
    finally:
        alarm.cancel()


def _give_up(settings: Distributed) -> None:
    number = "all" if settings.processes is None else f"all {settings.processes}"
    place = "" if settings.coordinator is None else f" at {settings.coordinator}"
    message = (
        f"promptax: {number} processes of the job did not meet{place} within {settings.timeout} s: "
        "has each been started, with a number of its own, and can it reach this port?\n"
    )
    # The main thread hangs inside JAX, so that no exception could reach it.
    os.write(STDERR, message.encode())
    os._exit(_EXIT_CODE)


@contextmanager
def _loss_explained() -> Iterator[None]:
    """Turn what a collective raises when another process is lost into a `UserError`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        if not re.search("Gloo|NCCL|UNAVAILABLE|heartbeat|coordination service", reason):
            raise
        raise UserError(
            f"another process of the job was lost ({reason[:_REASON_LENGTH]}). Finished tasks are "
            "kept: start all of them again with resume=True."
        ) from None


@contextmanager
def _watched_by_speaker(timeout: int) -> Iterator[None]:
    """Have a small process, the speaker, explain the end of this one if it is aborted.

    JAX aborts from a thread, after many lines of its own, when the coordinator of the job is lost
    or another process has not answered for `timeout` seconds. The speaker reads from a pipe. One
    byte means that all went well; the end of the pipe without it means that this process is gone.
    """
    command = [sys.executable, "-S", "-E", "-c", _SPEAKER, _LAST_WORDS.format(timeout)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as speaker:
        try:
            yield
        finally:
            assert speaker.stdin is not None
            speaker.stdin.write(b".")


_SPEAKER = "import sys; sys.stdin.read(1) or print(sys.argv[1], file=sys.stderr)"
_LAST_WORDS = (
    "promptax: this process was killed, or another one of the job was lost or has not answered for "
    "{} s. Finished tasks are kept: start all of them again with `--resume`."
)
