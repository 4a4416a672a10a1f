"""Figures computed from the accuracies of all tasks after each task (Lopez-Paz & Ranzato, 2017;
Chaudhry et al., 2018)."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from promptax.core.described import Described, Facts, in_percent

FIGURES = (
    "average_accuracy",
    "accuracy_by_example",
    "average_incremental_accuracy",
    "incremental_accuracy_by_example",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
)
"""The figures of a matrix, by their names in results."""

MOST_TASKS_SHOWN = 10
"""Largest number of tasks for which a matrix is shown with all its numbers."""


@dataclass(frozen=True, repr=False)
class AccuracyMatrix(Described):
    """`values[i, j]`: accuracy on test set j after task i, in [0, 1]; NaN if not measured.

    Every task has a test set of its own, except in joint training (one task, all test sets) and if
    one test set serves all tasks (a domain-incremental stream with a common test set).
    """

    values: Float[np.ndarray, "tasks test_sets"]
    examples: Int[np.ndarray, " test_sets"] | None = None
    """Number of images in each test set; None if it is not known."""
    before: Float[np.ndarray, " test_sets"] | None = None
    """Accuracy on each test set just before its task is learned, in [0, 1]; NaN where it is not
    measured, as for the first task and in class-incremental streams. None if it is not recorded."""
    classes: int | None = None
    """Number of classes of the stream; None if it is not known."""

    def _facts(self) -> Facts:
        tasks, test_sets = self.values.shape
        yield "size", f"{tasks} tasks, {test_sets} test sets"
        for name, value in self.summary().items():
            yield name.replace("_", " "), in_percent(value)
        if max(tasks, test_sets) <= MOST_TASKS_SHOWN:
            for number, row in enumerate(self.values, start=1):
                cells = [f"{100 * value:6.2f}" if np.isfinite(value) else "     -" for value in row]
                yield f"after task {number}", " ".join(cells)

    @classmethod
    def empty(
        cls,
        tasks: int,
        test_sets: int,
        examples: Int[np.ndarray, " test_sets"] | None = None,
        classes: int | None = None,
    ) -> "AccuracyMatrix":
        """A matrix in which nothing is measured yet."""
        values = np.full((tasks, test_sets), np.nan)
        return cls(values, examples, before=np.full(test_sets, np.nan), classes=classes)

    def with_row(
        self, task_number: int, accuracies: Float[np.ndarray, " measured"]
    ) -> "AccuracyMatrix":
        """Enter the accuracies on the first test sets after a task."""
        values = self.values.copy()
        values[task_number, : len(accuracies)] = accuracies
        return replace(self, values=values)

    def with_next(self, task_number: int, accuracy: float) -> "AccuracyMatrix":
        """Enter the accuracy on the test set of the next task, measured after a task."""
        test_sets = self.values.shape[1]
        before = np.full(test_sets, np.nan) if self.before is None else self.before.copy()
        before[task_number + 1] = accuracy
        return replace(self, before=before)

    def measured(self, task_number: int) -> bool:
        """Whether anything was measured after a task."""
        return bool(np.isfinite(self.values[task_number]).any())

    def after(self, tasks: int) -> "AccuracyMatrix":
        """The matrix as it stood after so many tasks, up to the last of them that was measured."""
        while tasks and not self.measured(tasks - 1):
            tasks -= 1
        rows = self.values[:tasks]
        measured = int(np.isfinite(rows[-1:]).sum())
        return AccuracyMatrix(
            rows[:, :measured],
            examples=None if self.examples is None else self.examples[:measured],
            before=None if self.before is None else self.before[:measured],
            classes=self.classes,
        )

    @property
    def average_accuracy(self) -> float | None:
        """Mean over the tasks seen, after the last task: `A_N`. None if nothing is measured."""
        return float(self.values[-1].mean()) if self.values.size else None

    @property
    def accuracy_by_example(self) -> float | None:
        """Share of all test images of the tasks seen that are classified correctly, after the last
        task: the mean over images, where `average_accuracy` is the mean over tasks. None if
        nothing is measured or the sizes of the test sets are not known."""
        if self.examples is None or not self.values.size:
            return None
        return float(np.average(self.values[-1], weights=self.examples))

    @property
    def average_incremental_accuracy(self) -> float | None:
        """Mean of `average_accuracy` over all stages: after the first task, after the second, and
        so on (Rebuffi et al., 2017). None if a stage was not measured."""
        if not self._every_stage_measured:
            return None
        # Where a later test set was not measured yet, there is no number.
        return float(np.nanmean(self.values, axis=1).mean())

    @property
    def incremental_accuracy_by_example(self) -> float | None:
        """Mean of `accuracy_by_example` over all stages, which is the average accuracy that PyCIL
        and LAMDA-PILOT print (commit 2647455, trainer.py:100 and utils/toolkit.py:32). It differs
        from `average_incremental_accuracy` if test sets differ in size. None if a stage was not
        measured or the sizes of the test sets are not known."""
        if self.examples is None or not self._every_stage_measured:
            return None
        correct = np.nansum(self.values * self.examples, axis=1)
        images = (np.isfinite(self.values) * self.examples).sum(axis=1)
        return float((correct / images).mean())

    @property
    def forgetting(self) -> float | None:
        """Mean over earlier tasks of the best accuracy so far minus the last one.

        The published code takes the best over all tasks, the last one included, so a task that
        only got better has forgetting 0. None if there is no earlier task, or one was not
        measured when it was learned.
        """
        if not self._sequential or np.isnan(self.values.diagonal()).any():
            return None
        best = np.nanmax(self.values[:, :-1], axis=0)
        return float((best - self.values[-1, :-1]).mean())

    @property
    def backward_transfer(self) -> float | None:
        """Mean over earlier tasks of the last accuracy minus the one when it was learned; None
        if there is no earlier task, or one was not measured."""
        if not self._sequential or np.isnan(self.values.diagonal()).any():
            return None
        return float((self.values[-1] - self.values.diagonal())[:-1].mean())

    @property
    def forward_transfer(self) -> float | None:
        """Mean over all tasks but the first of the accuracy just before the task is learned, minus
        the accuracy of guessing, which is one divided by the number of classes.

        Lopez-Paz and Ranzato (2017) subtract the accuracy of a network with random weights, which
        is on average that of guessing. None if there is only one task, or if the accuracy before
        one of the tasks was not measured, as in class-incremental streams.
        """
        if self.before is None or not self.classes or not self._sequential:
            return None
        mean = self.before[1:].mean()
        return None if np.isnan(mean) else float(mean) - 1 / self.classes

    @property
    def learning_accuracy(self) -> float | None:
        """Mean accuracy on each task just after it was learned; None if tasks have no test sets of
        their own, or one was not measured."""
        if self.values.shape[0] != self.values.shape[1] or not self.values.size:
            return None
        mean = self.values.diagonal().mean()
        return None if np.isnan(mean) else float(mean)

    @property
    def _every_stage_measured(self) -> bool:
        tasks = range(len(self.values))
        return bool(self.values.size) and all(self.measured(task) for task in tasks)

    @property
    def _sequential(self) -> bool:
        tasks, test_sets = self.values.shape
        return tasks == test_sets and tasks > 1

    def summary(self) -> dict[str, float | None]:
        """All figures by their names in results."""
        return {name: getattr(self, name) for name in FIGURES}
