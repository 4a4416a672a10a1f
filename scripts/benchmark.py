"""How fast promptax is, on the machine at hand.

    python scripts/benchmark.py step --method l2p dualprompt --batch-size 16 64
    python scripts/benchmark.py step --against torch          # with PyTorch installed
    python scripts/benchmark.py step --vit glyph-vit --batch-size 32 --cached False True
    python scripts/benchmark.py evaluate --method l2p linear  # images/s of an evaluation
    python scripts/benchmark.py run --classes 100 --images 500 --epochs 5    # a whole run
    python scripts/benchmark.py cache                         # what kept queries gain
    python scripts/benchmark.py growth --plot growth.png      # by tasks, classes, pool, ...
    python scripts/benchmark.py seeds                         # one after another, or vmapped
    python scripts/benchmark.py loader                        # images/s from a prepared set

Machines are noisy, so what is compared is run in turns (A B A B ...), and a ratio is the median of
the ratios of neighbours. Where several values are given, every combination is measured. `--json
FILE` keeps every figure.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from growth import Growth
from runs import Cache, Run, Seeds
from timing import (
    CLASSES,
    COMPETING,
    Clock,
    Dtype,
    Figures,
    Method,
    Work,
    evaluation_flops,
    in_turns,
    matmul_peak,
    peak_bytes,
    product,
    ratio,
    show,
    step_flops,
)

from promptax.core.allocator import keep_freed_memory
from promptax.core.types import Task
from promptax.data.loader import TrainBatches, read_ahead
from promptax.data.source import ArraySource
from promptax.training.evaluate import Masks, evaluation_step
from promptax.training.train import train_step


@dataclass(frozen=True)
class Choices:
    """Which work; of several values, every combination."""

    method: tuple[Method, ...] = ("l2p",)
    """Which methods, with their published prompts."""
    vit: tuple[str, ...] = ("vit-b/16",)
    """Shapes of the ViT, `glyph-vit` for that of the package; its weights are random."""
    batch_size: tuple[int, ...] = (16,)
    """Images of a step."""
    dtype: tuple[Dtype, ...] = ("float32",)
    """What the ViT computes in."""
    cached: tuple[bool, ...] = (False,)
    """With queries that come with the batch, or computed in the step."""
    augment: tuple[bool, ...] = (False,)
    """Crop, enlarge and mirror images of 32 x 32 inside the step, or take them as they are."""
    remat: tuple[bool, ...] = (False,)
    """Recompute blocks in the backward pass."""

    def all(self) -> list[Work]:
        """Every combination."""
        return [Work(**each) for each in product(**vars(self))]


@dataclass(frozen=True)
class Step:
    """Time a training step, preparation of the images and optimizer included."""

    work: tyro.conf.OmitArgPrefixes[Choices] = Choices()
    steps: int = 3
    """Steps of one measurement."""
    repeats: int = 3
    """Measurements of each side."""
    against: Literal["torch"] | None = None
    """What to compare with, in turns."""
    compile: bool = False
    """Let PyTorch compile its model."""
    clock: Clock = "wall"
    """What goes by, or what processors spend on this process: other work on the machine matters
    less to it, and a thread that waits in a loop counts."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Compile, measure in turns, and print a line for each figure."""
        rows: list[Figures] = []
        for work in self.work.all():
            show(self._measure(work), rows, self.json)

    def _measure(self, work: Work) -> Figures:
        ours, figures = _compiled_step(work)
        runs = [lambda: [ours() for _ in range(self.steps)]]
        if self.against is not None:
            figures |= {"clock": self.clock, "torch_compiled": self.compile}
            theirs = _torch_step(work, self.compile)
            figures["largest_loss_difference"] = compare(ours, theirs, 2)
            runs.append(lambda: [theirs() for _ in range(self.steps)])
        times = in_turns(runs, self.repeats, self.clock)
        seconds = [statistics.median(each) / self.steps for each in times]
        figures |= speed(work, seconds[0], step_flops(work))
        if self.against is not None:
            figures["torch_step_seconds"] = seconds[1]
            figures["times_as_fast_as_torch"] = ratio(times[1], times[0])
        return figures | {"peak_bytes": peak_bytes()}


def _compiled_step(work: Work) -> tuple[Callable[[], float], Figures]:
    """A step that gives the loss, and so waits for its end; and what compiling it says."""
    trainer, state = work.trainer()
    batch = work.batch(trainer.query_dim)
    task = Task.of(0, range(COMPETING), num_classes=CLASSES, steps=1000)
    began = time.perf_counter()
    lowered: Any = train_step  # Equinox does not type what it wraps
    compiled = lowered.lower((trainer, batch, task), state).compile()
    compiling = time.perf_counter() - began
    memory: Any = compiled.compiled.memory_analysis()
    held = {"state": state}

    def step() -> float:
        held["state"], metrics = compiled((trainer, batch, task), held["state"])
        return float(metrics.loss)

    facts = {"device": jax.devices()[0].device_kind, **vars(work), "compile_seconds": compiling}
    return step, facts | {"temporary_bytes": memory.temp_size_in_bytes}


def _torch_step(work: Work, compiled: bool) -> Callable[[], float]:
    """A PyTorch step over the same weights and images."""
    from torch_step import TorchStep

    if work.augment or work.cached or work.remat:
        raise SystemExit("the PyTorch step neither augments, caches nor recomputes.")
    trainer, state = work.trainer()
    batch = work.batch()
    rate = trainer.recipe.optimizer.learning_rate * work.batch_size / 256
    step = TorchStep(work.method, work.config, work.dtype, compiled, rate)
    images = np.asarray(batch.image, np.float32) / 255
    return step.make(trainer.model(state), images, np.asarray(batch.label))


def compare(ours: Callable[[], float], theirs: Callable[[], float], steps: int) -> float:
    """The largest difference of the losses of the first steps."""
    return max(abs(ours() - theirs()) for _ in range(steps))


def speed(work: Work, seconds: float, flops: float) -> Figures:
    """Rates of a batch that takes so long, for so many operations an image."""
    peak, rate = matmul_peak(work.dtype), flops * work.batch_size / seconds
    return {
        "seconds": seconds,
        "images_per_second": work.batch_size / seconds,
        "flops_per_second": rate,
        "matmul_peak": peak,
        "share_of_peak": rate / peak,
    }


@dataclass(frozen=True)
class Evaluate:
    """Time the evaluation of a batch whose queries are known: all evaluations but the first."""

    work: tyro.conf.OmitArgPrefixes[Choices] = Choices()
    steps: int = 3
    """Batches of one measurement."""
    repeats: int = 3
    """Measurements."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print a line for each figure."""
        rows: list[Figures] = []
        for work in self.work.all():
            trainer, state = work.trainer()
            batch, mask = work.batch(), jnp.ones(CLASSES, bool)
            query = jnp.ones((work.batch_size, trainer.query_dim))
            masks = Masks(mask, mask[None], jnp.zeros(work.batch_size, jnp.int32))
            call = lambda *given: evaluation_step(*given)
            given = (trainer, state.params, batch, query, masks)
            run = lambda: jax.block_until_ready([call(*given) for _ in range(self.steps)])  # noqa: B023
            (times,) = in_turns([run], self.repeats)
            seconds = statistics.median(times) / self.steps
            facts = {"device": jax.devices()[0].device_kind, **vars(work)}
            show(facts | speed(work, seconds, evaluation_flops(work)), rows, self.json)


@dataclass(frozen=True)
class Loader:
    """Images a second from a memory-mapped cache, in the order of training."""

    images: int = 2000
    """Images in the cache; as random bytes in a temporary file, which stays in memory."""
    side: int = 256
    """Their side, in pixels."""
    batch_size: int = 128
    """Images of a batch."""
    epochs: int = 5
    """Passes over the cache of one measurement."""
    repeats: int = 5
    """Measurements."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print the median and the range."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            shape = (self.images, self.side, self.side, 3)
            np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
            source = ArraySource(np.load(path, mmap_mode="r"), np.zeros(self.images, int))
            index = np.arange(self.images)
            batches = TrainBatches(source, index, self.batch_size, self.epochs, (0,))
            (seconds,) = in_turns([lambda: exhaust(batches)], self.repeats)
        rates = [self.images * self.epochs / each for each in seconds]
        figures = {"images_per_second": statistics.median(rates)}
        show(figures | {"slowest": min(rates), "fastest": max(rates)}, [], self.json)


def exhaust(batches: TrainBatches) -> None:
    """Read every batch, as training does, and do nothing with it."""
    for _ in read_ahead(batches):
        pass


COMMANDS = {
    "step": Step,
    "evaluate": Evaluate,
    "run": Run,
    "cache": Cache,
    "growth": Growth,
    "seeds": Seeds,
    "loader": Loader,
}


if __name__ == "__main__":
    keep_freed_memory()
    tyro.extras.subcommand_cli_from_dict(COMMANDS)()
