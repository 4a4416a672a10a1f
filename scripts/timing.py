"""What the commands of `scripts/benchmark.py` share: the work that is timed, and how."""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from promptax import nn
from promptax.core.settings import Evaluation, Images, Optimizer, Recipe, Schedule
from promptax.core.types import RawBatch, Task
from promptax.data import ArraySource, class_incremental
from promptax.data.stream import TaskStream
from promptax.methods import L2P, DualPrompt
from promptax.methods.base import AbstractMethod
from promptax.methods.registry import method_class
from promptax.nn.apart import put_together
from promptax.training.evaluate import Masks, evaluation_step
from promptax.training.state import TrainState
from promptax.training.steps import train_step
from promptax.training.trainer import Trainer

CLASSES, COMPETING = 100, 10
"""Outputs of the head, and how many of them compete in a task."""
PLAIN = Images(size=32, resize=None, crop_area=(1.0, 1.0), flip=False)
"""Images as they are."""
TINY = nn.ViTConfig(patch=8, dim=64, depth=6, heads=4, mlp=128, image=32)
"""A ViT for a trial of a benchmark itself."""
Method = Literal["l2p", "dualprompt", "linear", "finetune"]
Dtype = Literal["float32", "bfloat16"]
Clock = Literal["wall", "cpu"]
Figures = dict[str, Any]
_PUBLISHED: Mapping[str, AbstractMethod] = {
    "l2p": L2P(vote_group=None),
    # Each image chooses, as in the PyTorch step, where the task would say so in training.
    "dualprompt": DualPrompt(task_mask=False),
}


@dataclass(frozen=True)
class Work:
    """What is computed."""

    method: Method = "l2p"
    """Which method, with its published prompts."""
    vit: str = "vit-b/16"
    """Shape of the ViT, `glyph-vit` for that of the package, or `tiny`; its weights are random."""
    batch_size: int = 16
    """Images of a step."""
    dtype: Dtype = "float32"
    """What the ViT computes in."""
    cached: bool = False
    """With queries that come with the batch."""
    augment: bool = False
    """Crop, enlarge and mirror images of 32 x 32 inside the step, rather than take them as they
    are."""
    attention: Literal["auto", "plain", "cudnn"] = "auto"
    """How attention is computed; see `promptax.nn.Execution`."""
    blocks: Literal["auto", "scan", "unroll"] = "auto"
    """Loop over the blocks or lay them out one after another."""
    remat: Literal["auto", "all", "projections", "nothing"] = "auto"
    """What the backward pass computes again."""
    elementwise: Literal["auto", "saved", "recomputed"] = "auto"
    """What LayerNorm and GELU keep for the backward pass."""

    cast: bool = True
    """Cast frozen weights to the type that the ViT computes in once, rather than in each step."""
    apart: bool = True
    """Store frozen blocks apart rather than in stacks, where they are not looped over."""

    @property
    def execution(self) -> nn.Execution:
        """How the ViT is computed."""
        return nn.Execution(self.attention, self.blocks, self.remat, self.elementwise)

    @property
    def config(self) -> nn.ViTConfig:
        """The shape of the ViT."""
        if self.vit == "tiny":
            return TINY
        if self.vit == "glyph-vit":
            return nn.load_vit("glyph-vit").config
        return nn.vit_config(self.vit)

    @property
    def images(self) -> Images:
        """What happens to images."""
        side = self.config.image
        if self.augment:
            return replace(Images(), size=side, resize=round(side * 8 / 7))
        return replace(PLAIN, size=side)

    def trainer(
        self, *, epochs: int = 1, stream: TaskStream | None = None, mesh: Mesh | None = None
    ) -> tuple[Trainer, TrainState]:
        """The method on random weights."""
        vit = nn.ViT(self.config, key=jr.key(0), dtype=self.dtype, execution=self.execution)
        method = _PUBLISHED.get(self.method) or method_class(self.method)()
        schedule = Schedule(epochs, self.batch_size, cache_queries=self.cached)
        recipe = Recipe(Optimizer(), schedule, self.images, Evaluation(batch_size=self.batch_size))
        stream = self._stream() if stream is None else stream
        trainer, state = Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(1))
        frozen = trainer.setup.frozen
        if not self.apart:
            frozen = put_together(frozen)
        if not self.cast:
            # As it was before frozen weights were cast once: float32, cast in each step.
            cast = lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf
            frozen = jax.tree.map(cast, frozen)
        return eqx.tree_at(lambda trainer: trainer.setup.frozen, trainer, frozen), state

    def _stream(self) -> TaskStream:
        """A stream of one black image per class, of which only the sizes matter."""
        side = 32 if self.augment else self.config.image
        images = np.zeros((CLASSES, side, side, 3), np.uint8)
        source = ArraySource(images, np.arange(CLASSES))
        return class_incremental(source, source, num_tasks=CLASSES // COMPETING)

    def batch(self, query_dim: int = 0) -> RawBatch:
        """Random images, and random queries where these are cached."""
        random, side = np.random.default_rng(0), 32 if self.augment else self.config.image
        images = random.integers(0, 256, (self.batch_size, side, side, 3), dtype=np.uint8)
        labels = random.integers(0, COMPETING, self.batch_size).astype(np.int32)
        batch = RawBatch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(self.batch_size))
        query = random.normal(size=(self.batch_size, query_dim)).astype(np.float32)
        return replace(batch, query=jnp.asarray(query)) if self.cached else batch


def compiled_step(
    work: Work, compiler_options: Mapping[str, Any] | None = None
) -> tuple[Callable[[], Array], Figures]:
    """Compile a training step.

    Args:
        work: what is computed.
        compiler_options: XLA's options, by name, for this program only.

    Returns:
        A function that starts a step and gives its loss, which may still be under way; and the
        time and memory of the compiled program.
    """
    trainer, state = work.trainer()
    batch = work.batch(trainer.query_dim)
    task = Task.of(0, range(COMPETING), num_classes=CLASSES, steps=1000)
    arrays, fixed = eqx.partition((trainer.setup, trainer.rule, batch, task), eqx.is_array)
    program = lambda arrays, state: train_step(eqx.combine(arrays, fixed), state)
    began = time.perf_counter()
    lowered = jax.jit(program, donate_argnums=1).lower(arrays, state)
    compiled = lowered.compile(None if compiler_options is None else dict(compiler_options))
    compiling = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    held = {"state": state}

    def step() -> Array:
        held["state"], metrics = compiled(arrays, held["state"])
        return metrics.loss

    facts = {"device": jax.devices()[0].device_kind, **vars(work), "compile_seconds": compiling}
    facts["argument_bytes"] = memory.argument_size_in_bytes
    facts["temporary_bytes"] = memory.temp_size_in_bytes
    return step, facts


def compiled_evaluation(
    work: Work, compiler_options: Mapping[str, Any] | None = None
) -> tuple[Callable[[], Array], Figures]:
    """Compile the evaluation of a batch whose queries are known: all evaluations but the first.

    Args:
        work: what is computed.
        compiler_options: XLA's options, by name, for this program only.

    Returns:
        A function that starts the evaluation of a batch and gives the predicted classes, which may
        still be under way; and the time and memory of the compiled program.
    """
    trainer, state = work.trainer()
    batch = work.batch()
    mask = jnp.ones(CLASSES, bool)
    query = jnp.ones((work.batch_size, trainer.query_dim))
    masks = Masks(mask, mask[None], jnp.zeros(work.batch_size, jnp.int32))
    setup = trainer.setup.for_evaluation()
    given = (setup, state.params, state.method_state, batch, query, masks)
    arrays, fixed = eqx.partition(given, eqx.is_array)
    program = lambda arrays: evaluation_step(*eqx.combine(arrays, fixed)).predicted
    began = time.perf_counter()
    lowered = jax.jit(program).lower(arrays)
    compiled = lowered.compile(None if compiler_options is None else dict(compiler_options))
    compiling = time.perf_counter() - began
    facts = {"device": jax.devices()[0].device_kind, **vars(work), "compile_seconds": compiling}
    return lambda: compiled(arrays), facts


def repeated(start: Callable[[], Any], times: int) -> Callable[[], None]:
    """So many steps, started one after another, and the wait for the last: nothing is read in
    between, as in a training loop."""

    def run() -> None:
        last = None
        for _ in range(times):
            last = start()
        jax.block_until_ready(last)

    return run


def in_turns(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Clock = "wall"
) -> list[list[float]]:
    """Seconds of each run, one after another so many times, after a turn that is not counted."""
    turns = [[timed(run, clock) for run in runs] for _ in range(1 + repeats)]
    return [list(times) for times in zip(*turns[1:], strict=True)]


def timed(run: Callable[[], object], clock: Clock = "wall") -> float:
    """Seconds that a call takes; by `cpu`, those that processors have spent on this process."""
    now = time.perf_counter if clock == "wall" else time.process_time
    began = now()
    run()
    return now() - began


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios of neighbours."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def step_flops(work: Work) -> float:
    """Floating-point operations that a training step needs for an image: matrix products, an
    addition and a multiplication counted as two, and nothing that a frozen leaf, a token that
    nobody reads or a cached query does not need.

    Backwards, activations cost as much as forwards, and weights as much again where they are
    trained. A prompted step has a query pass in front.
    """
    config = work.config
    tokens = 1 + config.grid**2
    query = _patches(config) + _pass(config, tokens, 0, 1)
    if work.method == "linear":
        return 0 if work.cached else query
    if work.method == "finetune":
        return 3 * query
    inserted, prefix, read = (40, 0, 40) if work.method == "l2p" else (0, 5, 1)
    prompted = _pass(config, tokens + inserted, prefix, read)
    return (0 if work.cached else query) + _patches(config) + 2 * prompted


def evaluation_flops(work: Work) -> float:
    """The same for an image in an evaluation, whose query is known."""
    return 0 if work.method == "linear" else step_flops(replace(work, cached=True)) / 2


def _patches(config: nn.ViTConfig) -> float:
    return 2 * config.grid**2 * config.patch**2 * config.channels * config.dim


def _pass(config: nn.ViTConfig, tokens: int, prefix: int, read: int) -> float:
    """All blocks, the last one for the tokens that are read only; DualPrompt's five of twelve
    blocks with prefixes are counted as what they are in the paper's shape."""
    dim, mlp = config.dim, config.mlp

    def block(read: int, keys: int) -> float:
        projections = 2 * tokens * dim * 2 * dim + 2 * read * dim * (2 * dim + 2 * mlp)
        return projections + 4 * read * keys * dim

    prefixed = 5 if prefix else 0
    full = [tokens + prefix] * prefixed + [tokens] * (config.depth - 1 - prefixed)
    return sum(block(tokens, keys) for keys in full) + block(read, tokens)


def matmul_peak(dtype: str, side: int | None = None) -> float:
    """Operations a second of one large matrix product: the best of a few tries."""
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((side, side), dtype)
    product = eqx.filter_jit(lambda a: a @ a)
    run = lambda: jax.block_until_ready(product(a))
    run()
    return 2 * side**3 / min(timed(run) for _ in range(10))


def peak_bytes() -> int:
    """The most memory that the device has given out; without one, that the process has had."""
    stats = jax.devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", resident)


def torch_step(work: Work, mode: str | None) -> Callable[[], Any]:
    """A PyTorch step over the same weights and images, which gives the loss as a tensor.

    Args:
        work: what is computed; neither augmented nor with cached queries.
        mode: of `torch.compile`; None: not compiled.
    """
    from torch_step import TorchStep

    if work.augment or work.cached:
        raise SystemExit("the PyTorch step neither augments nor caches.")
    trainer, state = work.trainer()
    batch = work.batch()
    rate = trainer.recipe.optimizer.learning_rate * work.batch_size / 256
    step = TorchStep(work.method, work.config, work.dtype, mode, rate)
    images = np.asarray(batch.image, np.float32) / 255
    return step.make(trainer.model(state), images, np.asarray(batch.label))


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], *, steps: int) -> float:
    """The largest difference of the losses of the first steps."""
    return max(abs(float(ours()) - float(theirs())) for _ in range(steps))


def speed(work: Work, seconds: float, flops: float, peak: float | None = None) -> Figures:
    """Rates of a batch.

    Args:
        work: what is computed.
        seconds: how long a batch takes.
        flops: operations that an image needs.
        peak: operations a second of a large matrix product; measured now, if None.
    """
    peak = matmul_peak(work.dtype) if peak is None else peak
    rate = flops * work.batch_size / seconds
    return {
        "seconds": seconds,
        "images_per_second": work.batch_size / seconds,
        "flops_per_second": rate,
        "matmul_peak": peak,
        "share_of_peak": rate / peak,
    }


def product(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of some choices, by name."""
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


def show(figures: Figures, rows: list[Figures], path: Path | None) -> None:
    """Print figures, and write them with all earlier `rows` where a path is given."""
    for name, value in figures.items():
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
        print(f"{name:<24} {text}")
    print(flush=True)
    rows.append(figures)
    if path is not None:
        path.write_text(json.dumps(rows, indent=1, default=str) + "\n")
