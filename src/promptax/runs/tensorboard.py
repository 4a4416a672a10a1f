"""TensorBoard's event files, cut back to a checkpoint when a run goes on from there."""

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import histogram, scalar

from promptax.core.files import writing

Keep = Callable[[str, int], bool]
"""Whether what was written under a tag and step still holds."""

# Made by protobuf while it is imported, so that nobody can see them before.
Event, SessionLog = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))
_NAME, _DIGITS = "events.out.tfevents.", 6


class EventWriter:
    """Writes scalars and histograms; after `flush` they are on the disk.

    What earlier processes wrote and still holds is carried into a new file, and their files
    are removed: each step stands in one file once, however often a run was killed. The new
    file begins with a restart, upon which a TensorBoard that is looking forgets the old ones.
    """

    def __init__(self, folder: Path, keep: Keep):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        old = sorted(folder.glob(f"{_NAME}{'[0-9]' * _DIGITS}"))
        number = int(old[-1].name[-_DIGITS:]) + 1 if old else 1
        draft = folder / "draft"
        self._file = RecordWriter(str(draft))
        self._put(file_version="brain.Event:2")
        self._put(session_log=SessionLog(status=SessionLog.START))
        # The last holds all that was before it; others are there where a kill kept them.
        for event in itertools.chain.from_iterable(map(read_events, old[-1:])):
            if event.summary.value and keep(event.summary.value[0].tag, event.step):
                self._file.write(event.SerializeToString())
        self.flush()
        draft.rename(folder / f"{_NAME}{number:0{_DIGITS}d}")
        for path in old:
            path.unlink()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a figure."""
        self._put(step=step, summary=scalar(tag, value))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Write how often each number from 0 on occurs."""
        bins = np.arange(values.max() + 2) - 0.5
        self._put(step=step, summary=histogram(tag, values, bins))

    def flush(self) -> None:
        """Return once all is on the disk."""
        with writing(self.folder):
            self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        with writing(self.folder):
            self._file.close()

    def _put(self, **fields: Any) -> None:
        with writing(self.folder):
            self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())


class NoEvents(EventWriter):
    """Writes nothing, for a process that has others to do so."""

    def __init__(self):
        pass

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _put(self, **fields: Any) -> None:
        pass


def read_events(path: Path) -> Iterator[Any]:
    """The events of a file, up to where it is cut off or damaged."""
    content = memoryview(path.read_bytes())
    while len(content) >= 12:
        (length,) = struct.unpack("<Q", content[:8])
        if len(content) < 16 + length:
            return
        try:
            yield Event.FromString(bytes(content[12 : 12 + length]))
        except DecodeError:
            return
        content = content[16 + length :]
