"""Memory that a training step of L2P takes on each device: by size, batch and recomputation, and
for several ways to share a ViT over devices.

Compiles without weights: for fake devices of this machine's CPU or, with JAX's plugin for NVIDIA
GPUs, for a GPU that this machine need not have.

    python scripts/memory.py vit-l/16 vit-h/14
    python scripts/memory.py vit-b/16 --devices 1 --remat nothing projections all
    python scripts/memory.py vit-h/14 --card h200 --batch-size 128 256 --remat auto nothing
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from cards import CARDS, Card, compile_for_gpu, mesh_of

from promptax import data, methods, nn
from promptax.core import sharding
from promptax.core.settings import Recipe, Schedule
from promptax.core.types import RawBatch, Task
from promptax.nn.execution import compiling_for
from promptax.training.state import TrainState
from promptax.training.steps import is_stack, train_step
from promptax.training.trainer import Trainer

CLASSES = 100
Remat = Literal["auto", "all", "projections", "nothing"]
CardName = Literal["a100", "h100", "h200"]
IMAGE = (256, 256, 3)
"""Shape of an image before it is cropped."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Memory:
    """Print a table of the memory of a step, for every combination of what is asked for."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """ViTs, such as vit-l/16."""
    devices: int = 8
    """Devices of the CPU in all; a power of 2."""
    card: CardName | None = None
    """Compile for one such GPU instead."""
    batch_size: tuple[int, ...] = (128,)
    """Images of a step, over all devices."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The type that the ViT computes in."""
    blocks: Literal["auto", "scan", "unroll"] = "auto"
    """Loop over the blocks, or lay them out one after another."""
    remat: tuple[Remat, ...] = ("all",)
    """What the backward pass computes again."""

    def rows(self) -> None:
        """Print the table, line by line."""
        print("| ViT | batch | computed again | data x model | arguments | temporary | sum (MiB) |")
        print("|---|---|---|---|---|---|---|")
        devices = 1 if self.card else self.devices
        splits = [2**power for power in range(devices.bit_length())]
        combinations = itertools.product(self.sizes, self.batch_size, self.remat, splits)
        for size, batch, remat, model in combinations:
            arguments, temporary = self._measure(size, batch, remat, model)
            layout = f"{devices // model} x {model}"
            sizes = [arguments, temporary, arguments + temporary]
            cells = [size, batch, remat, layout, *(f"{each / MEBIBYTE:.0f}" for each in sizes)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    def _measure(self, size: str, batch: int, remat: Remat, model: int) -> tuple[int, int]:
        """Bytes of the arguments and of the temporary memory, on each device."""
        execution = nn.Execution(blocks=self.blocks, remat=remat)
        stream = empty_stream()
        recipe = Recipe(schedule=Schedule(batch_size=batch))
        card = CARDS[self.card] if self.card else None
        mesh = mesh_of(card) if card else sharding.make_mesh(None, model)

        def create() -> tuple[Trainer, TrainState]:
            config = nn.vit_config(size)
            vit = nn.ViT(config, key=jr.key(0), dtype=self.dtype, execution=execution)
            return Trainer.create(methods.L2P(), vit, stream, recipe, mesh=mesh, key=jr.key(0))

        memory = compile_step(create, stream, card).memory_analysis()
        assert memory is not None
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def empty_stream() -> data.TaskStream:
    """A stream of a single task with one black image of each class."""
    images = np.zeros((CLASSES, *IMAGE), np.uint8)
    source = data.ArraySource(images, np.arange(CLASSES))
    return data.class_incremental(source, source, num_tasks=1, name="empty")


def compile_step(
    create: Callable[[], tuple[Trainer, TrainState]],
    stream: data.TaskStream,
    card: Card | None = None,
    **options: Any,
) -> jax.stages.Compiled:
    """Compile a training step without running it.

    Not even weights are made, so the memory that a step takes on each device
    (`memory_analysis()` of the result) can be known on a machine that does not have it.

    Args:
        create: Makes a trainer and its state; only traced.
        stream: The stream of the trainer, for the shape of its images and its classes.
        card: The GPU of the trainer's mesh; None: this machine's default backend.
        options: Options of XLA, by name; for a card only.

    Returns:
        The compiled step.
    """
    if card is not None:
        with compiling_for(card.device):
            return compile_for_gpu(_traced(create, stream), **options)
    return _traced(create, stream).lower().compile()


def _traced(create: Callable[[], tuple[Trainer, TrainState]], stream: data.TaskStream) -> Any:
    trainer, state = eqx.filter_eval_shape(create)
    size = trainer.recipe.schedule.batch_size
    image = stream.train[stream.tasks[0].index[:1]].shape[1:]

    def make_batch() -> RawBatch:
        images = jnp.zeros((size, *image), jnp.uint8)
        return RawBatch(images, jnp.zeros(size, jnp.int32), jnp.ones(size))

    def make_task() -> Task:
        return Task.of(0, (0,), num_classes=stream.num_classes, steps=1)

    split = sharding.split(trainer.mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        eqx.filter_eval_shape(make_batch),
    )
    everything = (trainer.setup, trainer.rule, eqx.filter_eval_shape(make_task), state)
    setup, rule, task, state = sharding.abstract(everything, trainer.mesh, is_stack)
    # `jax.jit` takes shapes in the place of arrays, but nothing that is neither.
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    shapes, fixed = eqx.partition((setup, rule, batch, task), is_shape)
    step = lambda shapes, state: train_step(eqx.combine(shapes, fixed), state)
    return jax.jit(step, donate_argnums=1).trace(shapes, state)


if __name__ == "__main__":
    flags = tyro.cli(Memory)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices)
    flags.rows()
