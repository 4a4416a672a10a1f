"""What a person sees of a run while it goes: progress, log, TensorBoard."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType

import jax
from tqdm import tqdm

from promptax.runs.checkpoint import LOGGER
from promptax.core.distributed import is_writer
from promptax.training.evaluate import Evaluation
from promptax.runs.tensorboard import EventWriter, NoEvents
from promptax.training.loop import TaskEnded
from promptax.training.state import Metrics, TrainState
from promptax.training.position import StreamPosition

# Steps between two readings of the metrics; seconds between two lines without a terminal, and
# after which figures are to be seen in TensorBoard.
_EVERY_STEPS = 10
_EVERY_SECONDS = 15.0
_FLUSH_SECONDS = 2.0
# Figures of steps; all others are of tasks.
_STEPWISE = "train/"
# The published names of the figures.
_PUBLISHED = {
    "average_accuracy": "avg_acc",
    "forgetting": "forgetting",
    "backward_transfer": "backward",
    "learning_accuracy": "learning_acc",
}


class Monitor:
    """Follows a run; reads only metrics of steps that are long done, so it never stalls one."""

    def __init__(
        self, folder: Path, batch_size: int, steps: Sequence[int], at: StreamPosition, began: float
    ):
        self.began = began
        self.first_step: float | None = None
        """Seconds from the beginning to the end of the first step."""
        done = sum(steps[: at.stages]) + at.step
        self.stages, self.batch_size = len(steps), batch_size
        self.steps, self.done = sum(steps), done
        reached = lambda tag, step: step <= (done if tag.startswith(_STEPWISE) else at.stages)
        self.events = EventWriter(folder, reached) if is_writer() else NoEvents()
        self.terminal = sys.stderr.isatty() and is_writer()
        self.bar = tqdm(
            total=self.steps,
            initial=done,
            unit="step",
            disable=not self.terminal,
            dynamic_ncols=True,
        )
        self.pending: deque[tuple[int, Metrics]] = deque()
        self.started = self.said = self.flushed = time.monotonic()
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
        # Where the disk is full, closing fails again, and would hide what failed first.
        with suppress(OSError) if error else nullcontext():
            self.events.close()

    def on_step(self, state: TrainState, metrics: Metrics) -> None:
        """Count a step; now and then report the one counted ten steps before."""
        if self.first_step is None:
            self._on_first_step(metrics)
        self.done += 1
        self.bar.update()
        if self.done % _EVERY_STEPS == 0:
            self.pending.append((self.done, metrics))
            if len(self.pending) > 1:
                self._report(*self.pending.popleft())

    def _on_first_step(self, metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        self.first_step = time.monotonic() - self.began
        self._say(f"first step after {self.first_step:.1f} s")

    def flush(self) -> None:
        """Put all reports on the disk: a run that goes on from here does not repeat them."""
        while self.pending:
            self._report(*self.pending.popleft())
        self.events.flush()
        self.flushed = time.monotonic()

    def on_task(self, ended: TaskEnded) -> None:
        """Report a stage and what was measured after it."""
        figures = {}
        if ended.evaluation is not None:
            matrix = ended.matrices["instance"].after(ended.stage + 1)
            figures = {name: value for name, value in matrix.summary().items() if value is not None}
            self._write(ended.evaluation, figures, ended.stage + 1)
        self.flush()
        shown = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items()
        )
        self._say(f"task {ended.stage + 1}/{self.stages}  {shown}".rstrip())

    def _write(self, evaluation: Evaluation, figures: dict[str, float], number: int) -> None:
        for name, value in figures.items():
            self.events.scalar(_PUBLISHED[name], value, number)
        for task, accuracy in enumerate(evaluation.accuracy["instance"]):
            self.events.scalar(f"accuracy_{task + 1}", accuracy, number)
        for task, selected in enumerate(evaluation.selected):
            if selected.size:
                name = f"selected_prompts/task_{task + 1}"
                self.events.histogram(name, selected.ravel(), number)

    def _report(self, step: int, metrics: Metrics) -> None:
        metrics = jax.device_get(metrics)
        loss, rate = float(metrics.loss), float(metrics.learning_rate)
        for name in ("loss", "accuracy", "grad_norm", "learning_rate"):
            self.events.scalar(f"{_STEPWISE}{name}", float(getattr(metrics, name)), step)
        if time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.events.flush()
            self.flushed = time.monotonic()
        elapsed = time.monotonic() - self.started
        speed = (self.done - self.first) / elapsed
        images = f"{speed * self.batch_size:.0f} images/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}, rate {rate:.2g}, {images}", refresh=False)
        if not self.terminal and time.monotonic() - self.said > _EVERY_SECONDS:
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
