"""Callbacks: follow a run from Python, at each step, after each task, and at the end."""

import sys
from collections import deque
from collections.abc import Sequence

from tqdm import tqdm

from promptax.core.described import in_percent
from promptax.core.errors import UserError
from promptax.training.loop import Event, Fit, StepDone, TaskEnded
from promptax.training.state import Metrics

EVERY_STEPS = 10
"""Steps between two readings of the metrics."""


class Callback:
    """Follows `fit`; a subclass defines the methods that it needs.

    An exception that a method raises ends the run, which is a way to stop it early.
    """

    def on_start(self, steps: int) -> None:
        """Called before the first task.

        Args:
            steps: Number of optimizer steps of all tasks together; of a run that is resumed, those
                that are left.
        """

    def on_step(self, event: StepDone) -> None:
        """Called after every optimizer step. Reading a metric waits for the device."""

    def on_task(self, event: TaskEnded) -> None:
        """Called after every task, when it is trained and measured."""

    def on_end(self, fit: Fit) -> None:
        """Called once, after the last task."""


def check_callbacks(callbacks: object) -> None:
    """Raise `UserError` unless they are a sequence of callbacks."""
    if not isinstance(callbacks, Sequence):
        raise UserError(
            f"callbacks is {callbacks!r}; expected a list of px.Callback, such as "
            "[px.ProgressBar()]."
        )
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks has {callback!r} ({type(callback).__name__}); expected instances of "
                "px.Callback."
            )


def notify(callbacks: Sequence[Callback], event: Event) -> None:
    """Tell callbacks of an event of the training loop, if it is one that they follow."""
    for callback in callbacks:
        if isinstance(event, StepDone):
            callback.on_step(event)
        elif isinstance(event, TaskEnded):
            callback.on_task(event)


class ProgressBar(Callback):
    """A progress bar on stderr, with a line for the figures after each task."""

    def on_start(self, steps: int) -> None:
        """Show the bar, which counts the steps of all tasks."""
        self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._pending: deque[Metrics] = deque()

    def on_step(self, event: StepDone) -> None:
        """Count a step; now and then show the metrics of one that the device is long done with."""
        self._bar.update()
        if self._bar.n % EVERY_STEPS:
            return
        self._pending.append(event.metrics)
        if len(self._pending) > 1:
            metrics = self._pending.popleft()
            accuracy = f"{100 * float(metrics.accuracy):.0f} %"
            loss = f"{float(metrics.loss):.3f}"
            self._bar.set_postfix_str(f"loss {loss}, accuracy in training {accuracy}")

    def on_task(self, event: TaskEnded) -> None:
        """Print the figures after a task above the bar."""
        if event.measurement is None:
            return
        matrix = event.matrices["instance"]
        summary = matrix.after(event.task_number + 1).summary()
        figures = [
            f"{name.replace('_', ' ')} {in_percent(value)}"
            for name, value in summary.items()
            if value is not None
        ]
        line = f"task {event.task_number + 1}/{len(matrix.values)}  {'  '.join(figures)}"
        self._bar.write(line, file=sys.stderr)

    def on_end(self, fit: Fit) -> None:
        """Leave the bar as it is."""
        self._bar.close()
