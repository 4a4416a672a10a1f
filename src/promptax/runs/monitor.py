"""Progress bar, log lines and TensorBoard events of a run."""

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType

import jax
from tqdm import tqdm

from promptax.core.distributed import is_writer
from promptax.runs.checkpoint import LOGGER
from promptax.runs.tensorboard import EventWriter, NoEvents
from promptax.training.evaluate import Measurement
from promptax.training.loop import TaskEnded
from promptax.training.position import StreamPosition
from promptax.training.state import Metrics, TrainState

EVERY_STEPS = 10
"""Steps between two readings of the metrics."""
EVERY_SECONDS = 15.0
"""Seconds between two lines of the log if there is no terminal for a progress bar."""
FLUSH_SECONDS = 2.0
"""Seconds after which TensorBoard can see new figures."""
STEPWISE = "train/"
"""Prefix of the names of figures of steps; all others are of tasks."""
PUBLISHED_NAMES = {
    "average_accuracy": "avg_acc",
    "forgetting": "forgetting",
    "backward_transfer": "backward",
    "learning_accuracy": "learning_acc",
    "forward_transfer": "forward",
    "accuracy_by_example": "acc_by_example",
    "average_incremental_accuracy": "avg_incremental_acc",
    "incremental_accuracy_by_example": "incremental_acc_by_example",
}
"""The names of figures in TensorBoard; the first four are those of the published code."""
LOGGED = ("average_accuracy", "forgetting", "learning_accuracy")
"""The figures in the log; `result.json` has them all."""
GROUP = "eval/"
"""Prefix under which TensorBoard shows the same figures in a group of their own."""
NEGATIVE_LOSS = (
    "the loss is below 0, which is no error: methods with a prompt pool subtract the similarity of "
    "queries and keys from the cross-entropy"
)


class Monitor:
    """Follows a run; reads only metrics of steps that are long done, so it never stalls one."""

    def __init__(
        self,
        folder: Path,
        *,
        batch_size: int,
        steps: Sequence[int],
        start: StreamPosition,
        began: float,
        shows_bar: bool = True,
    ):
        """Start to follow a run.

        Args:
            folder: Folder of TensorBoard events.
            batch_size: Images of a step.
            steps: Steps of each task.
            start: How far the run has come already.
            began: When the command began, by `time.monotonic`.
            shows_bar: Whether to show a progress bar if stderr is a terminal.
        """
        self.began = began
        self.first_step: float | None = None
        """Seconds from the beginning to the end of the first step."""
        self.explained = False
        """Whether the log has said what a negative loss is."""
        self.tasks = len(steps)
        self.batch_size = batch_size
        self.steps = sum(steps)
        done = sum(steps[: start.tasks]) + start.step
        self.done = done
        reached = lambda tag, step: step <= (done if tag.startswith(STEPWISE) else start.tasks)
        self.events = EventWriter(folder, reached) if is_writer() else NoEvents()
        self.terminal = shows_bar and sys.stderr.isatty() and is_writer()
        self.bar = tqdm(
            total=self.steps,
            initial=done,
            unit="step",
            disable=not self.terminal,
            dynamic_ncols=True,
        )
        self.pending: deque[tuple[int, Metrics]] = deque()
        self.started = time.monotonic()
        self.said = self.started
        self.flushed = self.started
        self.first = done

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.bar.close()
        # On a full disk closing fails again, which would hide the first error.
        with suppress(OSError) if error else nullcontext():
            self.events.close()

    def on_step(self, state: TrainState, metrics: Metrics) -> None:
        """Count a step; now and then report the one counted ten steps before."""
        if self.first_step is None:
            self._on_first_step(metrics)
        self.done += 1
        self.bar.update()
        if self.done % EVERY_STEPS == 0:
            self.pending.append((self.done, metrics))
            if len(self.pending) > 1:
                self._report(*self.pending.popleft())

    def _on_first_step(self, metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        self.first_step = time.monotonic() - self.began
        self._say(f"first step after {self.first_step:.1f} s")

    def flush(self) -> None:
        """Write all pending reports, so that a run that goes on from here does not repeat them."""
        while self.pending:
            self._report(*self.pending.popleft())
        self.events.flush()
        self.flushed = time.monotonic()

    def on_task(self, ended: TaskEnded) -> None:
        """Report the end of a task and what was measured after it."""
        figures = {}
        if ended.measurement is not None:
            matrix = ended.matrices["instance"].after(ended.task_number + 1)
            figures = {name: value for name, value in matrix.summary().items() if value is not None}
            self._write(ended.measurement, figures, ended.task_number + 1)
        self.flush()
        shown = "  ".join(
            f"{name.replace('_', ' ')} {100 * figures[name]:.2f} %"
            for name in LOGGED
            if name in figures
        )
        self._say(f"task {ended.task_number + 1}/{self.tasks}  {shown}".rstrip())

    def _write(self, measurement: Measurement, figures: dict[str, float], number: int) -> None:
        for name, value in figures.items():
            self.events.scalar(PUBLISHED_NAMES[name], value, number)
            self.events.scalar(f"{GROUP}{name}", value, number)
        for task, accuracy in enumerate(measurement.accuracy["instance"]):
            self.events.scalar(f"accuracy_{task + 1}", accuracy, number)
            self.events.scalar(f"{GROUP}accuracy/task_{task + 1}", accuracy, number)
        for task, selected in enumerate(measurement.selected):
            if selected.size:
                name = f"selected_prompts/task_{task + 1}"
                self.events.histogram(name, selected.ravel(), number)

    def _report(self, step: int, metrics: Metrics) -> None:
        metrics = jax.device_get(metrics)
        loss = float(metrics.loss)
        rate = float(metrics.learning_rate)
        if loss < 0 and not self.explained:
            self.explained = True
            self._say(NEGATIVE_LOSS)
        for name in ("loss", "accuracy", "grad_norm", "learning_rate"):
            value = float(getattr(metrics, name))
            # The accuracy of a task with a single class is not a number; a bad loss is shown.
            if name != "accuracy" or not math.isnan(value):
                self.events.scalar(f"{STEPWISE}{name}", value, step)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.events.flush()
            self.flushed = time.monotonic()
        elapsed = time.monotonic() - self.started
        speed = (self.done - self.first) / elapsed
        images = f"{speed * self.batch_size:.0f} images/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}, rate {rate:.2g}, {images}", refresh=False)
        if not self.terminal and time.monotonic() - self.said > EVERY_SECONDS:
            left = (self.steps - self.done) / speed
            self._say(
                f"step {self.done}/{self.steps}  loss {loss:.3f}  rate {rate:.2g}  {images}  "
                f"about {left:.0f} s left"
            )

    def _say(self, line: str) -> None:
        self.said = time.monotonic()
        self.bar.clear()
        LOGGER.info(line)
        self.bar.refresh()
