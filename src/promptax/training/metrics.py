"""What is read off the accuracies of all tasks after each task (Lopez-Paz & Ranzato, 2017;
Chaudhry et al., 2018)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class AccuracyMatrix:
    """`values[i, j]`: accuracy on task j after training stage i, in [0, 1]; NaN: not measured.

    The stages are the tasks themselves, except in joint training (one stage, all tasks) and
    where one test set serves every stage (domain-incremental with a common test set).
    """

    values: Float[np.ndarray, "stages tasks"]

    @classmethod
    def empty(cls, stages: int, tasks: int) -> "AccuracyMatrix":
        """Nothing measured yet."""
        return cls(np.full((stages, tasks), np.nan))

    def with_row(self, stage: int, accuracies: Float[np.ndarray, " measured"]) -> "AccuracyMatrix":
        """Enter the accuracies of the first tasks after a stage."""
        values = self.values.copy()
        values[stage, : len(accuracies)] = accuracies
        return AccuracyMatrix(values)

    def measured(self, stage: int) -> bool:
        """Whether anything was measured after a stage."""
        return bool(np.isfinite(self.values[stage]).any())

    def after(self, stages: int) -> "AccuracyMatrix":
        """The matrix as it stood after so many stages, up to the last of them that was measured."""
        while stages and not self.measured(stages - 1):
            stages -= 1
        rows = self.values[:stages]
        return AccuracyMatrix(rows[:, : int(np.isfinite(rows[-1:]).sum())])

    @property
    def average_accuracy(self) -> float | None:
        """Mean over the tasks seen, after the last stage: `A_N`. None: nothing is measured."""
        return float(self.values[-1].mean()) if self.values.size else None

    @property
    def forgetting(self) -> float | None:
        """Mean over earlier tasks of the best accuracy so far minus the last one.

        The published code takes the best over all stages, the last included, so a task that
        only got better has forgetting 0. None where there is no earlier task, or one was not
        measured when it was learned.
        """
        if not self._sequential or np.isnan(self.values.diagonal()).any():
            return None
        best = np.nanmax(self.values[:, :-1], axis=0)
        return float((best - self.values[-1, :-1]).mean())

    @property
    def backward_transfer(self) -> float | None:
        """Mean over earlier tasks of the last accuracy minus the one when it was learned; None
        where there is no earlier task, or one was not measured."""
        if not self._sequential or np.isnan(self.values.diagonal()).any():
            return None
        return float((self.values[-1] - self.values.diagonal())[:-1].mean())

    @property
    def learning_accuracy(self) -> float | None:
        """Mean accuracy on each task just after it was learned; None where stages are not tasks,
        or one was not measured."""
        if self.values.shape[0] != self.values.shape[1] or not self.values.size:
            return None
        mean = self.values.diagonal().mean()
        return None if np.isnan(mean) else float(mean)

    @property
    def _sequential(self) -> bool:
        stages, tasks = self.values.shape
        return stages == tasks and tasks > 1

    def summary(self) -> dict[str, float | None]:
        """All figures by name."""
        names = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy")
        return {name: getattr(self, name) for name in names}
