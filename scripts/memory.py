"""Memory that a training step of L2P takes on each device, for several ways to share a ViT.

Compiles for fake devices of this machine's CPU, without weights. Another backend needs other
temporary memory, but the same for arguments (weights, optimizer state, batch).

    python scripts/memory.py vit-l/16 vit-h/14
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

from promptax import data, methods, nn
from promptax.core import sharding
from promptax.core.settings import Recipe, Schedule
from promptax.core.types import RawBatch, Task
from promptax.training.state import TrainState
from promptax.training.steps import is_stack, train_step
from promptax.training.trainer import Trainer

CLASSES = 100
IMAGE = (256, 256, 3)
"""Shape of an image before it is cropped."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Memory:
    """Print a table of the memory of a step, by the devices that a ViT is split over."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """ViTs, such as vit-l/16."""
    devices: int = 8
    """Devices in all; a power of 2."""
    batch_size: int = 128
    """Over all devices."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the ViT computes in."""
    remat: bool = True
    """Recompute blocks in the backward pass."""

    def row(self, size: str, model: int) -> str:
        """A line of the table, in MiB, for a ViT that is split over `model` devices."""
        stream = empty_stream()
        recipe = Recipe(schedule=Schedule(batch_size=self.batch_size))
        mesh = sharding.make_mesh(None, model)

        def create() -> tuple[Trainer, TrainState]:
            vit = nn.ViT(nn.vit_config(size), key=jr.key(0), dtype=self.dtype, remat=self.remat)
            return Trainer.create(methods.L2P(), vit, stream, recipe, mesh=mesh, key=jr.key(0))

        memory = compile_step(create, stream).memory_analysis()
        assert memory is not None
        arguments = memory.argument_size_in_bytes
        temporary = memory.temp_size_in_bytes
        cells = [f"{part / MEBIBYTE:.0f}" for part in (arguments, temporary, arguments + temporary)]
        return f"| {size} | {self.devices // model} x {model} | {' | '.join(cells)} |"


def empty_stream() -> data.TaskStream:
    """A stream of a single task with one black image of each class."""
    images = np.zeros((CLASSES, *IMAGE), np.uint8)
    source = data.ArraySource(images, np.arange(CLASSES))
    return data.class_incremental(source, source, num_tasks=1, name="empty")


def compile_step(
    create: Callable[[], tuple[Trainer, TrainState]], stream: data.TaskStream
) -> jax.stages.Compiled:
    """Compile a training step without running it.

    Not even weights are made, so the memory that a step takes on each device
    (`memory_analysis()` of the result) can be known on a machine that does not have it.

    Args:
        create: Makes a trainer and its state; only traced.
        stream: The stream of the trainer, for the shape of its images and its classes.

    Returns:
        The compiled step.
    """
    trainer, state = eqx.filter_eval_shape(create)
    size = trainer.recipe.schedule.batch_size
    image = stream.train[stream.stages[0].index[:1]].shape[1:]

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
    return jax.jit(step, donate_argnums=1).lower(shapes, state).compile()


if __name__ == "__main__":
    flags = tyro.cli(Memory)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices)
    print("| ViT | data x model | arguments (MiB) | temporary (MiB) | sum (MiB) |")
    print("|---|---|---|---|---|")
    for size in flags.sizes:
        for model in (2**n for n in range(flags.devices.bit_length())):
            print(flags.row(size, model), flush=True)
