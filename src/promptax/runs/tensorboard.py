"""TensorBoard's event files, cut back to a checkpoint when a run goes on from there.

tensorboardX's `SummaryWriter` has `purge_step` for runs that go on, but it promises less than is
needed here. It leaves the old events in their files and tells TensorBoard to forget those from one
step on. Other readers still find them twice, and one step cannot serve figures that count training
steps and figures that count tasks. So only its record format and its summaries are used.
"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter, masked_crc32c
from tensorboardX.summary import histogram, scalar

from promptax.core.errors import UserError
from promptax.core.files import read_bytes, writing

LOGGER = logging.getLogger("promptax")
Keep = Callable[[str, int], bool]
"""Whether an event with this tag and step belongs to the run as it goes on."""

# Made by protobuf while it is imported, so that type checkers cannot see them.
Event = getattr(event_pb2, "Event")  # noqa: B009
SessionLog = getattr(event_pb2, "SessionLog")  # noqa: B009

_NAME = "events.out.tfevents."
_DIGITS = 6  # of the number after the name
# A record is its length, a checksum of the length, the event, and a checksum of the event.
_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4
_HEADER_BYTES = _LENGTH_BYTES + _CHECKSUM_BYTES


class EventWriter:
    """Writes scalars and histograms; after `flush` they are on the disk.

    Those events of earlier processes that are still valid are copied into a new file, and the old
    files are removed: each step is in the files only once, however often a run was killed. The new
    file begins with a restart, upon which a TensorBoard that is running forgets the old ones.
    """

    def __init__(self, folder: Path, keep: Keep):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        old = sorted(folder.glob(f"{_NAME}{'[0-9]' * _DIGITS}"))
        number = int(old[-1].name[-_DIGITS:]) + 1 if old else 1
        draft = folder / "draft"
        draft.unlink(missing_ok=True)  # whatever a kill, or somebody else, has left there
        self._file = RecordWriter(str(draft))
        self._put(file_version="brain.Event:2")
        self._put(session_log=SessionLog(status=SessionLog.START))
        # The last file holds all that was before it; others are there where a kill kept them.
        for event in _readable_events(old[-1]) if old else ():
            if event.summary.value and keep(event.summary.value[0].tag, event.step):
                self._file.write(event.SerializeToString())
        self.flush()
        draft.rename(folder / f"{_NAME}{number:0{_DIGITS}d}")
        for path in old:
            path.unlink()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number under a name, at a step or task."""
        self._put(step=step, summary=scalar(tag, value))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Write how often each integer from 0 on occurs among the values."""
        edges = np.arange(values.max() + 2) - 0.5  # each integer in the middle of its bin
        self._put(step=step, summary=histogram(tag, values, edges))

    def flush(self) -> None:
        """Return once everything is on the disk."""
        with writing(self.folder):
            self._file.flush()

    def close(self) -> None:
        """Write what is left, and close the file."""
        with writing(self.folder):
            self._file.close()

    def _put(self, **fields: Any) -> None:
        with writing(self.folder):
            self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())


class NoEvents(EventWriter):
    """Writes nothing, in the processes that leave the writing to another one."""

    def __init__(self):
        pass

    def flush(self) -> None:
        """Return at once: there is nothing to write."""

    def close(self) -> None:
        """Return at once: there is no file to close."""

    def _put(self, **fields: Any) -> None:
        pass


def read_events(path: Path) -> Iterator[Any]:
    """The events of a file, up to the place where it is cut off or damaged; then warn.

    Raises `UserError` for what is not a regular file.
    """
    content = memoryview(read_bytes(path, "event file"))
    while content:
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        end = _HEADER_BYTES + length + _CHECKSUM_BYTES
        record = bytes(content[_HEADER_BYTES : _HEADER_BYTES + length])
        try:
            if len(content) < end or content[end - _CHECKSUM_BYTES : end] != _checksum(record):
                raise DecodeError("cut off or changed")
            event = Event.FromString(record)
        except DecodeError:
            LOGGER.warning(
                f"event file {path} is cut off or damaged: its last {len(content)} bytes are lost, "
                "and the run itself is not affected."
            )
            return
        yield event
        content = content[end:]


def _checksum(record: bytes) -> bytes:
    return masked_crc32c(record).to_bytes(_CHECKSUM_BYTES, "little")


def _readable_events(path: Path) -> Iterator[Any]:
    """The events of a file, or none if something else is in its place."""
    try:
        yield from read_events(path)
    except UserError as error:
        LOGGER.warning(f"earlier events are lost: {error}")
