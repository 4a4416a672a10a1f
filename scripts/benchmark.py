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
    python scripts/benchmark.py host                          # what the host needs for a step
    python scripts/benchmark.py gpu --out FOLDER              # all of it on one GPU, in 6 minutes

Machines are noisy, so what is compared is run in turns (A B A B ...), and a ratio is the median of
the ratios of neighbours. Where several values are given, every combination is measured. `--json
FILE` keeps every figure.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from gpu import Gpu
from growth import Growth
from host import Host
from loader import Loader
from runs import Cache, Run, Seeds
from timing import (
    Clock,
    Dtype,
    Figures,
    Method,
    Work,
    compare,
    compiled_evaluation,
    compiled_step,
    evaluation_flops,
    in_turns,
    peak_bytes,
    product,
    ratio,
    repeated,
    show,
    speed,
    step_flops,
    torch_step,
)

from promptax.core.accelerator import tune_xla
from promptax.core.allocator import keep_freed_memory


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
    attention: tuple[Literal["auto", "plain", "cudnn"], ...] = ("auto",)
    """How attention is computed."""
    blocks: tuple[Literal["auto", "scan", "unroll"], ...] = ("auto",)
    """Loop over the blocks or lay them out one after another."""
    remat: tuple[Literal["auto", "all", "projections", "nothing"], ...] = ("auto",)
    """What the backward pass computes again."""

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
        start, figures = compiled_step(work)
        ours = lambda: float(start())
        runs = [lambda: [ours() for _ in range(self.steps)]]
        if self.against is not None:
            figures |= {"clock": self.clock, "torch_compiled": self.compile}
            theirs = torch_step(work, "default" if self.compile else None)
            figures["largest_loss_difference"] = compare(ours, theirs, steps=2)
            runs.append(lambda: [float(theirs()) for _ in range(self.steps)])
        times = in_turns(runs, self.repeats, self.clock)
        seconds = [statistics.median(each) / self.steps for each in times]
        figures |= speed(work, seconds[0], step_flops(work))
        if self.against is not None:
            figures["torch_step_seconds"] = seconds[1]
            figures["times_as_fast_as_torch"] = ratio(times[1], times[0])
        return figures | {"peak_bytes": peak_bytes()}


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
            start, facts = compiled_evaluation(work)
            (times,) = in_turns([repeated(start, self.steps)], self.repeats)
            seconds = statistics.median(times) / self.steps
            show(facts | speed(work, seconds, evaluation_flops(work)), rows, self.json)


COMMANDS = {
    "step": Step,
    "evaluate": Evaluate,
    "run": Run,
    "cache": Cache,
    "growth": Growth,
    "seeds": Seeds,
    "gpu": Gpu,
    "loader": Loader,
    "host": Host,
}


if __name__ == "__main__":
    keep_freed_memory()
    tune_xla()
    tyro.extras.subcommand_cli_from_dict(COMMANDS)()
