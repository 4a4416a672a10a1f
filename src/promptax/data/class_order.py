"""The order in which classes come, drawn as different code bases draw it.

A published result belongs to an order of classes, and a seed names an order only together with the
generator that it was drawn with: seed 1993 of LAMDA-PILOT is not seed 1993 of CODA-Prompt.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from promptax.core.errors import UserError

Shuffling = Literal["promptax", "pilot", "coda"]
"""The code base in whose way a seed draws the order."""
LARGEST_LEGACY_SEED = 2**32 - 1
"""The largest seed of NumPy's legacy generator, which LAMDA-PILOT and others use."""


@dataclass(frozen=True)
class Shuffled:
    """An order of classes that is drawn from a seed.

    Three conventions are known (`like`):

    - `promptax`: `numpy.random.default_rng(seed).permutation`.
    - `pilot`: `numpy.random.seed(seed)` and `numpy.random.permutation`, as in LAMDA-PILOT (commit
      2647455, utils/data_manager.py:156; the usual seed is 1993) and in mammoth with
      `--permute_classes` (commit e75a491, datasets/utils/continual_dataset.py:232).
    - `coda`: `random.seed(seed)` and `random.shuffle` of Python, as in CODA-Prompt (commit 6417d4f,
      trainer.py:65). Seed 0 leaves the classes in ascending order, as there.

    The official code of L2P and DualPrompt has the ascending order in all its configurations.
    """

    seed: int
    like: Shuffling = "promptax"

    def __post_init__(self):
        if self.seed < 0 or (self.like == "pilot" and self.seed > LARGEST_LEGACY_SEED):
            raise UserError(
                f"seed of the class order is {self.seed}; expected at least 0 and, with the order "
                f"of LAMDA-PILOT, at most {LARGEST_LEGACY_SEED}."
            )

    def order(self, count: int) -> list[int]:
        """Draw the order of `count` classes."""
        if self.like == "pilot":
            return np.random.RandomState(self.seed).permutation(count).tolist()
        if self.like == "coda":
            classes = list(range(count))
            if self.seed > 0:
                random.Random(self.seed).shuffle(classes)
            return classes
        return np.random.default_rng(self.seed).permutation(count).tolist()


ClassOrder = Sequence[int] | Shuffled | int | None
"""All classes in their order, an order to be drawn, the seed of one (drawn as `promptax`), or
None for ascending."""


def resolve_order(count: int, order: ClassOrder) -> list[int]:
    """The order of `count` classes as a list."""
    if order is None:
        return list(range(count))
    if isinstance(order, int):
        order = Shuffled(order)
    if isinstance(order, Shuffled):
        return order.order(count)
    return [int(number) for number in order]
