"""A split: the examples of a source that are trained on in a task, or tested on together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from promptax.core.described import Described, Facts, some


@dataclass(frozen=True, repr=False)
class Split(Described):
    """Examples of a source: the training examples of one task, or one test set."""

    name: str
    classes: tuple[int, ...]
    """The classes that the loss of the task is over, ascending."""
    index: Int[np.ndarray, " examples"]
    """Positions of the examples in the source."""

    def _facts(self) -> Facts:
        yield "name", self.name
        yield "classes", some(tuple(map(str, self.classes)))
        yield "examples", f"{len(self.index):,}"
