"""Whole runs, for `scripts/benchmark.py`: end to end, with kept queries, and over seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from timing import (
    CLASSES,
    COMPETING,
    Clock,
    Figures,
    Work,
    compiled_step,
    in_turns,
    peak_bytes,
    ratio,
    repeated,
    show,
)
from traces import Kernel, idle_share, traced

from promptax import data, nn
from promptax.core.types import RawBatch, Task
from promptax.runs.presets import default_for
from promptax.training.compiles import count_compiles
from promptax.training.loop import StepDone, TaskEnded, run_stream, train_task
from promptax.training.state import TrainState
from promptax.training.steps import train_step
from promptax.training.trainer import Trainer

TRACED = 40
"""Steps of a task that are traced."""
WARMUP = 10
"""Steps of that task before them."""


@dataclass(frozen=True)
class Run:
    """Time a run from start to end, data and all evaluations included, on random images of
    32 x 32 that the step enlarges.

    Split CIFAR-100 has `--classes 100 --images 500 --test 100 --tasks 10 --epochs 5`.
    """

    work: tyro.conf.OmitArgPrefixes[Work] = Work(vit="glyph-vit", batch_size=32)
    tasks: int = 5
    """Tasks."""
    classes: int = 20
    """Classes of all tasks together."""
    images: int = 50
    """Training images of a class."""
    test: int = 10
    """Test images of a class."""
    epochs: int = 2
    """Passes over a task."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Run once, and print a line for each figure."""
        facts = {"device": jax.devices()[0].device_kind, **_plain(self)}
        show(facts | self.measure(), [], self.json)

    def measure(self, on_task: Callable[[Figures], None] = lambda row: None) -> Figures:
        """Run once.

        Args:
            on_task: called after each task with its figures.

        Returns:
            The figures of the run. `longer_than_steps` compares the training time, without the
            first task, with what its steps take in short bursts of their own: the difference is
            waiting, and clocks that are lower in sustained work. `idle_share`, on a GPU, is the
            share of time in which no kernel ran during `TRACED` steps in the middle of a task.
        """
        began = time.perf_counter()
        stream = data.class_incremental(
            _random(self.classes, self.images),
            _random(self.classes, self.test),
            num_tasks=self.tasks,
        )
        trainer, state = self.work.trainer(epochs=self.epochs, stream=stream)
        ends = []
        with count_compiles() as compiles:
            for end in run_stream(trainer, stream, state, seed=0):
                if not isinstance(end, TaskEnded):
                    continue
                ends.append(end)
                times = {"train": end.train_seconds, "evaluate": end.evaluate_seconds}
                on_task(
                    {"task": end.task_number, **times, "compile": sum(compiles.seconds.values())}
                )
        seconds = time.perf_counter() - began
        steps = [trainer.steps(stream, number) for number in range(len(stream.tasks))]
        trained = sum(end.train_seconds for end in ends)
        start, _ = compiled_step(self.work)
        alone = min(in_turns([repeated(start, 10)], 3)[0]) / 10
        later = sum(end.train_seconds for end in ends[1:])
        is_traced = jax.default_backend() == "gpu" and steps[-1] >= WARMUP + TRACED
        kernels = _traced_steps(trainer, ends[-1].state, stream) if is_traced else []
        return {
            "seconds": seconds,
            "train_seconds": trained,
            "evaluate_seconds": sum(end.evaluate_seconds for end in ends),
            "compile_seconds": sum(compiles.seconds.values()),
            "images_per_second": sum(steps) * self.work.batch_size / trained,
            "step_seconds": alone,
            "longer_than_steps": later / (sum(steps[1:]) * alone) - 1 if later else None,
            "idle_share": idle_share(kernels) if kernels else None,
            "compiles": dict(compiles.count),
            "peak_bytes": peak_bytes(),
        }


def _traced_steps(trainer: Trainer, state: TrainState, stream: data.TaskStream) -> list[Kernel]:
    """Trace `TRACED` steps in the middle of the last task, taken as a run takes them.

    Args:
        trainer: The trainer of the run.
        state: The state after the run; it is used up.
        stream: The tasks.

    Returns:
        The kernels that ran.
    """
    training = train_task(trainer, state, stream, len(stream.tasks) - 1, seed=1)
    steps = (event for event in training if isinstance(event, StepDone))

    def take(count: int) -> None:
        losses = [event.metrics.loss for event in itertools.islice(steps, count)]
        jax.block_until_ready(losses)

    take(WARMUP)
    return traced(lambda: take(TRACED))


@dataclass(frozen=True)
class Cache:
    """What keeping the queries of training images gains on a bundled stream, whose images are not
    augmented: training of a task with and without, in turns, compiled before."""

    methods: tuple[str, ...] = ("linear", "l2p", "dualprompt")
    """Which methods, by their presets."""
    stream: str = "split-glyphs"
    """Which stream; its first task is trained."""
    epochs: int = 5
    """Passes over the task."""
    repeats: int = 3
    """Measurements of each side."""
    clock: Clock = "wall"
    """What goes by, or what processors spend on this process."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print a line for each figure."""
        rows: list[Figures] = []
        for name in self.methods:
            without, kept = (self._training(name, cache) for cache in (False, True))
            times = in_turns([without, kept], self.repeats, self.clock)
            figures = {"method": name, "epochs": self.epochs, "clock": self.clock}
            figures["times_as_fast"] = ratio(times[0], times[1])
            seconds = dict(zip(("without", "kept"), map(float, map(np.median, times)), strict=True))
            show(figures | seconds, rows, self.json)

    def _training(self, name: str, cache: bool) -> Callable[[], None]:
        preset = default_for(name, self.stream)
        stream = preset.data.load(0)
        schedule = replace(preset.recipe.schedule, epochs=self.epochs, cache_queries=cache)
        recipe = replace(preset.recipe, schedule=schedule)
        create = lambda: Trainer.create(
            preset.learner(), nn.load_vit("glyph-vit"), stream, recipe, key=jr.key(0)
        )
        held = {"trainer": create()[0], "state": create()[1]}

        def run() -> None:
            training = train_task(held["trainer"], held["state"], stream, 0, seed=0)
            while True:
                try:
                    next(training)
                except StopIteration as stop:
                    held["state"] = stop.value
                    break
            jax.block_until_ready(held["state"].params)

        return run


@dataclass(frozen=True)
class Seeds:
    """Compare a step of several seeds, one after another, with one step mapped over the seeds.

    On 2 busy cores, 4 seeds of L2P on the ViT of the package in batches of 32: mapped, 0.91 times
    as fast (`--clock cpu --repeats 3`). So seeds are trained one after another.
    """

    work: tyro.conf.OmitArgPrefixes[Work] = Work(vit="glyph-vit", batch_size=32)
    seeds: int = 4
    """Number of seeds."""
    repeats: int = 5
    """Measurements of each side."""
    clock: Clock = "wall"
    """What goes by, or what processors spend on this process."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Compile both, measure in turns, and print a line for each figure."""
        facts = {"device": jax.devices()[0].device_kind, **_plain(self)}
        figures = measure_seeds(self.work, self.seeds, self.repeats, self.clock)
        show(facts | figures, [], self.json)


def measure_seeds(work: Work, seeds: int, repeats: int, clock: Clock, steps: int = 10) -> Figures:
    """Time steps of several seeds, one after another and mapped.

    Args:
        work: what is computed.
        seeds: number of seeds.
        repeats: measurements of each side.
        clock: what goes by.
        steps: steps of each seed in one measurement.
    """
    trainer, _ = work.trainer()
    states = [replace(work.trainer()[1], key=jr.key(seed)) for seed in range(seeds)]
    batch = work.batch(trainer.query_dim)
    task = Task.of(0, range(COMPETING), num_classes=CLASSES, steps=1000)
    stack = lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]
    held: dict[str, Any] = {"many": jax.tree.map(stack, *states), "each": states}
    batches = jax.tree.map(stack, *[batch] * seeds)

    def one_after_another() -> None:
        for _ in range(steps):
            held["each"] = [
                train_step((trainer.setup, trainer.rule, batch, task), state)[0]
                for state in held["each"]
            ]
        jax.block_until_ready(held["each"])

    def mapped() -> None:
        for _ in range(steps):
            held["many"] = _mapped(trainer, task, batches, held["many"])
        jax.block_until_ready(held["many"])

    times = in_turns([one_after_another, mapped], repeats, clock)
    return {
        "seconds_one_after_another": float(np.median(times[0])) / steps,
        "seconds_mapped": float(np.median(times[1])) / steps,
        "mapped_is_times_as_fast": ratio(times[0], times[1]),
    }


@eqx.filter_jit
def _mapped(trainer: Trainer, task: Task, batches: RawBatch, states: TrainState) -> TrainState:
    step = lambda batch, state: train_step((trainer.setup, trainer.rule, batch, task), state)[0]
    return eqx.filter_vmap(step)(batches, states)


def _random(classes: int, each: int) -> data.ArraySource:
    random, labels = np.random.default_rng(0), np.repeat(np.arange(classes), each)
    return data.ArraySource(
        random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels
    )


def _plain(command: Run | Seeds) -> Figures:
    """The settings of a command, those of its work beside the others."""
    settings = {**vars(command.work), **vars(command)}
    return {name: value for name, value in settings.items() if name not in ("work", "json")}
