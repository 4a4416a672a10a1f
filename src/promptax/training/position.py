"""How far a run has come, which is also what its checkpoints are named after."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class StreamPosition:
    """How far a run has come in its stream of tasks.

    As text, `2` is the end of the second task, `2.40` is 40 steps into the third, and
    `2.90.trained` is the third after its 90 steps, trained but not measured yet.
    """

    tasks: int
    """Number of tasks that are finished and measured."""
    step: int = 0
    """Steps taken in the task after them; 0 if it has not begun."""
    trained: bool = False
    """Whether that task has taken its last step and the method has concluded it."""

    def __str__(self) -> str:
        step = f".{self.step}" if self.step or self.trained else ""
        return f"{self.tasks}{step}{'.trained' if self.trained else ''}"

    @classmethod
    def of(cls, name: str) -> "StreamPosition | None":
        """Parse the text that `str` gives; None if it is no position."""
        found = re.fullmatch(r"(\d+)(?:\.(\d+)(\.trained)?)?", name)
        return found and cls(int(found[1]), int(found[2] or 0), bool(found[3]))

    @property
    def between(self) -> bool:
        """Whether the run is between two tasks."""
        return not self.step and not self.trained


START = StreamPosition(0)
"""Before the first task."""
