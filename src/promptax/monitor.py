"""What a person sees of a run while it goes: progress, log, TensorBoard."""

import logging
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from promptax.evaluate import Evaluation
from promptax.loop import StageEnd
from promptax.train import Metrics, TrainState

LOGGER = logging.getLogger("promptax")

# Steps between two readings of the metrics, and seconds between two lines without a terminal.
_EVERY_STEPS = 10
_EVERY_SECONDS = 15.0
# The published names of the figures.
_PUBLISHED = {
    "average_accuracy": "avg_acc",
    "forgetting": "forgetting",
    "backward_transfer": "backward",
    "learning_accuracy": "learning_acc",
}


class Monitor:
    """Follows a run; reads only metrics of steps that are long done, so it never stalls one."""

    def __init__(self, stages: int, folder: Path, batch_size: int, steps: int, done: int):
        self.stages, self.batch_size, self.steps, self.done = stages, batch_size, steps, done
        # `flush` does not wait for the writer's thread, which by default writes every 2 minutes.
        self.writer = SummaryWriter(str(folder), purge_step=done or None, flush_secs=1)
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=done, unit="step", disable=not self.terminal, dynamic_ncols=True
        )
        self.pending: deque[tuple[int, Metrics]] = deque()
        self.started = self.said = time.monotonic()
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
        self.writer.close()

    def on_step(self, state: TrainState, metrics: Metrics) -> None:
        """Count a step; now and then report the one counted ten steps before."""
        self.done += 1
        self.bar.update()
        if self.done % _EVERY_STEPS == 0:
            self.pending.append((self.done, metrics))
            if len(self.pending) > 1:
                self._report(*self.pending.popleft())

    def on_stage(self, end: StageEnd) -> None:
        """Report a stage and what was measured after it."""
        figures = {}
        if end.evaluation is not None:
            matrix = end.matrices["instance"].after(end.stage + 1)
            figures = {name: value for name, value in matrix.summary().items() if value is not None}
            self._write(end.evaluation, figures, end.stage + 1)
        shown = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items()
        )
        self._say(f"task {end.stage + 1}/{self.stages}  {shown}".rstrip())

    def _write(self, evaluation: Evaluation, figures: dict[str, float], number: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(_PUBLISHED[name], value, number)
        for task, accuracy in enumerate(evaluation.accuracy["instance"]):
            self.writer.add_scalar(f"accuracy_{task + 1}", accuracy, number)
        for task, selected in enumerate(evaluation.selected):
            if selected.size:
                name = f"selected_prompts/task_{task + 1}"
                self.writer.add_histogram(name, selected.ravel(), number)
        self.writer.flush()

    def _report(self, step: int, metrics: Metrics) -> None:
        loss, accuracy, norm, rate = (float(x) for x in jax.tree.leaves(metrics))
        for name, value in (
            ("train/loss", loss),
            ("train/accuracy", accuracy),
            ("train/grad_norm", norm),
            ("train/learning_rate", rate),
        ):
            self.writer.add_scalar(name, value, step)
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
