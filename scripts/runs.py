"""Whole runs, for `scripts/benchmark.py`: end to end, with kept queries, and over seeds."""

from __future__ import annotations

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
from timing import CLASSES, COMPETING, Clock, Figures, Work, in_turns, peak_bytes, ratio, show

from promptax import data, nn
from promptax.core.types import Batch, Task
from promptax.runs.presets import default_for
from promptax.training.compiles import count_compiles
from promptax.training.evaluate import Evaluator
from promptax.training.loop import empty_matrices, run_stages, train_stage
from promptax.training.train import Trainer, TrainState, train_step


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
        began = time.perf_counter()
        stream = data.class_incremental(
            _random(self.classes, self.images),
            _random(self.classes, self.test),
            num_tasks=self.tasks,
        )
        trainer, state = self.work.trainer(epochs=self.epochs, stream=stream)
        evaluator, ends = Evaluator(trainer, stream), []
        with count_compiles() as compiles:
            for end in run_stages(evaluator, state, empty_matrices(evaluator), seed=0):
                ends.append(replace(end, state=state))
        seconds = time.perf_counter() - began
        steps = sum(trainer.steps(len(stage.index)) for stage in stream.stages)
        trained = sum(end.train_seconds for end in ends)
        facts = {"device": jax.devices()[0].device_kind, **_plain(self)}
        figures = {
            "seconds": seconds,
            "train_seconds": trained,
            "evaluate_seconds": sum(end.evaluate_seconds for end in ends),
            "compile_seconds": sum(compiles.seconds.values()),
            "images_per_second": steps * self.work.batch_size / trained,
            "compiles": dict(compiles.count),
            "peak_bytes": peak_bytes(),
        }
        show(facts | figures, [], self.json)


@dataclass(frozen=True)
class Cache:
    """What keeping the queries of training images gains on a box stream, whose images are not
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
        stream = preset.method.stream(preset.data.load(0))
        schedule = replace(preset.recipe.schedule, epochs=self.epochs, cache_queries=cache)
        recipe = replace(preset.recipe, schedule=schedule)
        create = lambda: Trainer.create(
            preset.method,
            nn.load_vit("glyph-vit"),
            stream.num_classes,
            recipe,
            stream=stream,
            key=jr.key(0),
        )
        held = {"trainer": create()[0], "state": create()[1]}

        def run() -> None:
            held["state"] = train_stage(held["trainer"], held["state"], stream, 0, 0)
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
        trainer, _ = self.work.trainer()
        states = [self._state(seed) for seed in range(self.seeds)]
        batch = self.work.batch(trainer.query_dim)
        task = Task.of(0, range(COMPETING), num_classes=CLASSES, steps=1000)
        stack = lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]
        held: dict[str, Any] = {"many": jax.tree.map(stack, *states), "each": states}
        batches = jax.tree.map(stack, *[batch] * self.seeds)

        def one_after_another() -> None:
            steps = [train_step((trainer, batch, task), state) for state in held["each"]]
            held["each"] = [state for state, _ in jax.block_until_ready(steps)]

        def mapped() -> None:
            held["many"] = jax.block_until_ready(_mapped(trainer, task, batches, held["many"]))

        times = in_turns([one_after_another, mapped], self.repeats, self.clock)
        facts = {"device": jax.devices()[0].device_kind, **_plain(self)}
        facts["seconds_one_after_another"], facts["seconds_mapped"] = map(np.median, times)
        show(facts | {"mapped_is_times_as_fast": ratio(times[0], times[1])}, [], self.json)

    def _state(self, seed: int) -> TrainState:
        state = self.work.trainer()[1]
        return replace(state, key=jr.key(seed))


@eqx.filter_jit
def _mapped(trainer: Trainer, task: Task, batches: Batch, states: TrainState) -> TrainState:
    step = lambda batch, state: train_step((trainer, batch, task), state)[0]
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
