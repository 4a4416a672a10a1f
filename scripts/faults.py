"""Kill training runs at every kind of moment, resume them, and compare them with undisturbed runs.

    python scripts/faults.py --kills 20 --methods l2p linear
    python scripts/faults.py --long

The first command prints for each kind of fault how often it was tried and how often anything was
lost: a resumed run must end with the same bits in every array of its last checkpoint, the same
`result.json` (except for the timing) and the same TensorBoard events, each once. The second command
trains 200 tasks in 20,000 steps, and prints how memory, open files, threads and logs have grown.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Must be set before JAX is imported. These models are so small that most of the work is compiling.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
# When it ends, Python would warn about the semaphores of the processes that were killed.
os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"

import numpy as np
import orbax.checkpoint as ocp
import tyro

from promptax.cli import main as promptax
from promptax.core.errors import UserError
from promptax.methods.registry import builtin_methods
from promptax.nn import ViT, ViTConfig, vit_leaves
from promptax.runs.checkpoint import Checkpoints
from promptax.runs.folder import differences
from promptax.runs.monitor import Monitor
from promptax.runs.tensorboard import read_events
from promptax.training import evaluate, trainer
from promptax.training.loop import TaskEnded

ANY = "at any moment"
TWICE = "twice, at any moments"
CREATING = "making the run folder"
SAVING = "saving a checkpoint"
WRITING = "writing other files"
STEP = "before a step"
END = "at the end of a task"
EVALUATING = "evaluating"
FAULTS = (ANY, CREATING, SAVING, STEP, EVALUATING, END, WRITING, TWICE)
FLAGS = [
    *("--data.per-class", "12", "--data.first", "3", "--batch-size", "8", "--epochs", "2"),
    *("--eval.batch-size", "50", "--checkpoint-every", "2", "--resume"),
]
BUFFER = ["--buffer-size", "20", "--replay-batch", "8"]
"""Flags for methods with a replay buffer, since the stream is smaller than the usual buffer."""
REPLAYING = ("er", "derpp")
MOST_GROWTH = 1.05
"""By how much the memory of a long run may grow after the first half of its tasks."""

MORE_THREADS = 4
"""How many more threads a long run may hold in the second half: pools start some when needed."""


@dataclass(frozen=True)
class Config:
    """Kill runs, resume them, and compare them with undisturbed runs."""

    methods: tuple[str, ...] = tuple(builtin_methods())
    """Methods to train."""
    kills: int = 20
    """Number of runs to kill for each method, spread over all kinds of faults."""
    seed: int = 0
    """Seed of the moments at which runs are killed."""
    long: bool = False
    """Train many tasks instead, and observe memory and open files."""
    tasks: int = 200
    """Number of tasks of the long run."""
    steps: int = 20_000
    """Number of steps of the long run, in all tasks together."""


@dataclass
class Moments:
    """Counts what a run does, and kills it when it does `fault` for the time `number`."""

    folder: Path
    fault: str | None = None
    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def pass_by(self, moment: str) -> None:
        self.counts[moment] += 1
        if moment == self.fault and self.counts[moment] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: Sequence[Any]) -> None:
        """Audit hook, which Python calls before it opens or changes a file."""
        writes = event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _FILE_EVENTS and writes and isinstance(args[0], str | os.PathLike):
            name = os.path.abspath(args[0])  # noqa: PTH100
            if name.startswith(f"{self.folder}"):
                self.pass_by(self._file(name))

    def _file(self, name: str) -> str:
        if f"{self.folder}/checkpoints" in name:
            return SAVING
        return WRITING if self.counts[STEP] else CREATING

    def watch(self, module: Any, name: str, moment: str) -> None:
        """Count the calls of a function of a module."""
        function = getattr(module, name)

        def passing(*args: Any) -> Any:
            self.pass_by(moment)
            return function(*args)

        setattr(module, name, passing)


_FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def child(argv: list[str], moments: Moments, counts: Path | None) -> None:
    """The body of a process that trains one run."""
    log = os.open(moments.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for step in ("train_step", "observe_step"):
        moments.watch(trainer, step, STEP)
    moments.watch(trainer.Trainer, "end_task", END)
    moments.watch(evaluate, "evaluation_step", EVALUATING)
    sys.addaudithook(moments.audit)
    code = promptax(argv)
    if counts is not None:
        counts.write_text(json.dumps(moments.counts))
    sys.exit(code)


@dataclass(frozen=True)
class Subject:
    """A method, with an undisturbed run of it to compare with."""

    method: str
    place: Path

    @property
    def straight(self) -> Path:
        return self.place / f"{self.method}-straight"

    def start(self, folder: Path, moments: Moments, counts: Path | None = None) -> Any:
        flags = [*FLAGS, *BUFFER] if self.method in REPLAYING else FLAGS
        argv = ["train", self.method, *flags, "--run", f"{folder}"]
        process = SPAWN.Process(target=child, args=(argv, moments, counts))
        process.start()
        return process

    def whole(self) -> tuple[dict[str, int], float]:
        """Make the undisturbed run; return how often it passes each moment, and its seconds."""
        began = time.monotonic()
        counts = self.place / f"{self.method}.json"
        process = self.start(self.straight, Moments(self.straight), counts)
        process.join()
        assert process.exitcode == 0, self.straight.with_suffix(".log").read_text()
        return json.loads(counts.read_text()), time.monotonic() - began

    def kill(self, folder: Path, fault: str, latest: Any, draw: random.Random) -> bool:
        """Start or resume a run and kill it; False if it ended before it could be killed."""
        if fault not in (ANY, TWICE):
            process = self.start(folder, Moments(folder, fault, draw.randint(1, latest)))
        else:
            process = self.start(folder, Moments(folder))
            process.join(draw.uniform(0, latest))
            process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def lost(self, folder: Path) -> str | None:
        """Resume a run to its end. Return what differs from the undisturbed run, or None."""
        process = self.start(folder, Moments(folder))
        process.join()
        if process.exitcode != 0:
            return f"exit {process.exitcode}, see {folder.with_suffix('.log')}"
        differing = differences(outcome(self.straight), outcome(folder))
        return next((name for name, _ in differing), None)


SPAWN = multiprocessing.get_context("forkserver")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be the same in a resumed run and an undisturbed one."""
    checkpoint = Checkpoints(folder / "checkpoints").newest()
    assert checkpoint is not None
    with ocp.StandardCheckpointer() as reader:
        arrays = reader.restore((checkpoint.path / "state").absolute())
    (events,) = (folder / "tensorboard").glob("events.*")
    return {
        "arrays": {name: np.asarray(array).tobytes() for name, array in arrays.items()},
        "result": {**json.loads((folder / "result.json").read_text()), "timing": None},
        "events": [
            (event.step, event.summary.SerializeToString()) for event in read_events(events)
        ],
    }


def tries(subject: Subject, config: Config) -> Iterator[tuple[str, str | None]]:
    """Try all kinds of faults in turn; yield each with what was lost by it, or None."""
    counts, seconds = subject.whole()
    faults = [fault for fault in FAULTS if fault in (ANY, TWICE) or counts.get(fault)]
    draw = random.Random(f"{config.seed} {subject.method}")
    for number, fault in zip(range(config.kills), itertools.cycle(faults), strict=False):
        folder = subject.place / f"{subject.method}-{number}"
        latest = counts.get(fault, seconds)
        wanted = 2 if fault == TWICE else 1
        kills = 0
        while kills < wanted:
            if subject.kill(folder, fault, latest, draw):
                kills += 1
            else:  # the run has ended, and there is nothing left to kill
                shutil.rmtree(folder)
        yield fault, subject.lost(folder)


def kill_all(config: Config, place: Path) -> int:
    """Print the table of faults; return how often something was lost."""
    # Processes share compiled steps, as those of users do, but in a cache of their own.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{place / 'compiled'}"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    SPAWN.set_forkserver_preload(
        ["promptax.runs.runner", "promptax.cli.train", "promptax.runs.plot"]
    )
    done = Counter[str]()
    lost = Counter[str]()
    for method in config.methods:
        for fault, difference in tries(Subject(method, place), config):
            done[fault] += 1
            lost[fault] += difference is not None
            print(f"{method}: killed {fault}: {difference or 'nothing lost'}", file=sys.stderr)
    print("| killed | tries | lost |\n|---|---|---|")
    for fault in FAULTS:
        print(f"| {fault} | {done[fault]} | {lost[fault]} |")
    print(f"| in all | {done.total()} | {lost.total()} |")
    return lost.total()


# --- long life ---


def long_files(place: Path, tasks: int) -> list[str]:
    """Write a ViT of two small blocks, and noise images with a class for each task.

    Returns flags that train on them.
    """
    import jax.random as jr

    vit = ViT(ViTConfig(8, 16, 2, 2, 16, image=16), key=jr.key(0))
    leaves: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in vit_leaves(vit).items()}
    np.savez(place / "weights.npz", **leaves)
    draw = np.random.default_rng(0)
    for name, each in (("train", 8), ("test", 1)):
        labels = np.repeat(np.arange(tasks), each)
        images = draw.integers(0, 256, (len(labels), 16, 16), np.uint8)
        np.savez(place / f"{name}.npz", images=images, labels=labels)
    files = [f"--data.{name}={place / name}.npz" for name in ("train", "test")]
    sizes = f"--images.size 16 --images.resize 16 --data.tasks {tasks} --batch-size 8".split()
    return [f"--weights={place / 'weights.npz'}", *files, *sizes, "--eval.every", "10"]


@dataclass(frozen=True)
class Used:
    """What this process holds of the system, by `/proc`."""

    memory: int
    """Resident bytes."""
    files: int
    threads: int
    maps: int
    """Mappings of memory, of which a process may have some 65,000."""

    @classmethod
    def now(cls) -> Used:
        process = Path("/proc/self")
        pages = int((process / "statm").read_text().split()[1])
        return cls(
            memory=pages * os.sysconf("SC_PAGESIZE"),
            files=len(list((process / "fd").iterdir())),
            threads=len(list((process / "task").iterdir())),
            maps=len((process / "maps").read_text().splitlines()),
        )

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} | {self.files} | {self.threads} | {self.maps}"

    def has_grown_since(self, early: Used) -> bool:
        """Whether what should stay the same over many tasks has not."""
        sizes = (self.memory > MOST_GROWTH * early.memory, self.maps > MOST_GROWTH * early.maps)
        threads = self.threads > early.threads + MORE_THREADS
        return any(sizes) or self.files > early.files or threads


def long_life(place: Path, tasks: int, steps: int) -> int:
    """Print what a run holds after its tasks, and the sizes of its files; return 1 if it grows."""
    used: list[Used] = []
    on_task: Callable[..., None] = Monitor.on_task

    def look(self: Monitor, ended: TaskEnded) -> None:
        on_task(self, ended)
        used.append(Used.now())

    Monitor.on_task = look
    flags = [*long_files(place, tasks), "--epochs", f"{steps // tasks}", "--checkpoint-every", "50"]
    flags.append("--no-compile-cache")
    began = time.monotonic()
    run = place / "run"
    assert promptax(["train", "linear", *flags, "--run", f"{run}"]) == 0
    print(f"{tasks} tasks, {steps} steps, {time.monotonic() - began:.0f} s")
    print(
        "| after task | memory (MiB) | open files | threads | memory maps |\n|---|---|---|---|---|"
    )
    quarters = range(tasks // 4, tasks + 1, tasks // 4)
    for task in sorted({1, min(5, tasks), *quarters, tasks}):
        print(f"| {task} | {used[task - 1]} |")
    for name in ("log.txt", "tensorboard", "checkpoints", "result.json"):
        print(f"{name}: {size(run / name) / 2**10:.0f} KiB")
    return int(used[-1].has_grown_since(used[tasks // 2 - 1]))


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main(config: Config) -> int:
    with tempfile.TemporaryDirectory() as place:
        if config.long:
            return long_life(Path(place), config.tasks, config.steps)
        return kill_all(config, Path(place))


if __name__ == "__main__":
    try:
        sys.exit(min(main(tyro.cli(Config)), 1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
