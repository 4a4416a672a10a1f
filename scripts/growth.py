"""What a step and an evaluation cost as things grow, for `scripts/benchmark.py growth`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
from timing import PLAIN, Clock, Figures, show, timed

from promptax import data, nn
from promptax.core.settings import Evaluation, Optimizer, Recipe, Schedule
from promptax.core.sharding import make_mesh
from promptax.methods import L2P
from promptax.training.compiles import count_compiles
from promptax.training.evaluate import Evaluator
from promptax.training.loop import StepDone, TaskEnded, run_stream
from promptax.training.trainer import Trainer

SMALL = nn.ViTConfig(patch=8, dim=64, depth=4, heads=4, mlp=128, image=32)
"""A ViT so small that it does not hide the cost of everything else."""


@dataclass(frozen=True)
class Setting:
    """Everything that can grow; the defaults hold while something else grows."""

    tasks: int = 4
    classes: int = 10
    pool_size: int = 10
    prompt_length: int = 5
    batch_size: int = 32
    devices: int = 1


AXES: Mapping[str, tuple[int, ...]] = {
    "tasks": (2, 20, 200),
    "classes": (10, 100, 1000, 10_000),
    "pool_size": (10, 100, 1000),
    "prompt_length": (1, 5, 20),
    "batch_size": (16, 64, 256),
    "devices": (1, 2, 4, 8),
}
"""The values at which each is measured."""


@dataclass(frozen=True)
class Growth:
    """Measure L2P on a small ViT while one thing grows at a time: time of a step and of an
    evaluation, and how often the steps were compiled. On a CPU, devices share its cores."""

    axes: tuple[str, ...] = tuple(AXES)
    """What grows."""
    steps: int = 6
    """Steps of a task."""
    clock: Clock = "wall"
    """What goes by, or what processors spend on this process."""
    plot: Path | None = None
    """Where to draw the figure."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure every point, and draw them."""
        if "devices" in self.axes:
            jax.config.update("jax_num_cpu_devices", max(AXES["devices"]))
        rows: list[Figures] = []
        for axis in self.axes:
            for value in AXES[axis]:
                setting = replace(Setting(), **{axis: value})
                show({"axis": axis, "value": value, **self._measure(setting)}, rows, self.json)
        if self.plot is not None:
            draw(rows, self.plot, self.clock)

    def _measure(self, setting: Setting) -> Figures:
        jax.clear_caches()  # a setting that comes twice is to be compiled twice
        stream = _stream(setting, self.steps)
        trainer, state = _trainer(setting, stream)
        evaluator = Evaluator(trainer, stream)
        marks = []
        now = time.perf_counter if self.clock == "wall" else time.process_time

        end = None
        with count_compiles() as compiles:
            for event in run_stream(trainer, stream, state, evaluator=evaluator, seed=0):
                if isinstance(event, StepDone):
                    jax.block_until_ready(event.metrics)
                    marks.append(now())
                elif isinstance(event, TaskEnded):
                    end = event
            assert end is not None, "a stream has a task"
            last = len(stream.tasks) - 1
            again = lambda: evaluator(end.state, last)
            evaluation = min(timed(again, self.clock) for _ in range(3))
        apart = np.diff(np.asarray(marks).reshape(setting.tasks, self.steps), axis=1)
        earlier, later = np.array_split(apart, 2)
        tested = sum(len(task.index) for task in stream.test_sets)
        return {
            "step_seconds": float(np.median(apart)),
            "later_by_earlier_steps": float(np.median(later) / np.median(earlier)),
            "step_ms_per_image": 1e3 * float(np.median(apart)) / setting.batch_size,
            "evaluation_ms_per_image": 1e3 * evaluation / tested,
            "compiles": {name: compiles.count[name] for name in ("train", "evaluate", "query")},
        }


def _stream(setting: Setting, steps: int) -> data.TaskStream:
    """Domains of random images, so that the number of tasks and of classes are independent."""
    random = np.random.default_rng(0)

    def part(each: int) -> tuple[data.ArraySource, np.ndarray]:
        domain = np.repeat(np.arange(setting.tasks), each)
        images = random.integers(0, 256, (len(domain), 32, 32, 3), dtype=np.uint8)
        labels = random.integers(0, setting.classes, len(domain))
        return data.ArraySource(images, labels), domain

    (train, of_train), (test, of_test) = part(steps * setting.batch_size), part(100)
    names = [f"{domain}" for domain in range(setting.tasks)]
    classes = [f"{label}" for label in range(setting.classes)]
    return data.domain_incremental(
        train, test, (of_train, of_test), domain_names=names, class_names=classes
    )


def _trainer(setting: Setting, stream: data.TaskStream):
    method = L2P(pool_size=setting.pool_size, prompt_length=setting.prompt_length, vote_group=None)
    evaluation = Evaluation(every=max(setting.tasks, 2) // 2)
    recipe = Recipe(Optimizer(), Schedule(1, setting.batch_size), PLAIN, evaluation)
    mesh = make_mesh(setting.devices)
    vit = nn.ViT(SMALL, key=jr.key(0))
    return Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(0))


def draw(rows: list[Figures], path: Path, clock: Clock) -> None:
    """Draw a panel for each thing that grows, for light pages and for dark ones (`-dark`)."""
    from promptax.runs.looks import style

    with style("light"):
        _draw(rows, path, clock)
    with style("dark"):
        _draw(rows, path.with_stem(f"{path.stem}-dark"), clock)


def _draw(rows: list[Figures], path: Path, clock: Clock) -> None:
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    columns = min(3, len(axes))
    lines = -(-len(axes) // columns)
    size = (3.4 * columns, 2.6 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    series = {"step_ms_per_image": "training step", "evaluation_ms_per_image": "evaluation"}
    for panel, axis in zip(panels.flat, axes, strict=False):
        own = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in own]
        for number, (name, label) in enumerate(series.items()):
            heights = [row[name] for row in own]
            panel.plot(values, heights, "os"[number] + "-", label=label, markersize=4)
        panel.set(xscale="log", xlabel=axis.replace("_", " "), ylim=(0, None))
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("ms per image" if clock == "wall" else "processor ms per image")
    for panel in panels.flat[len(axes) :]:
        panel.remove()
    panels.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
