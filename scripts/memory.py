"""Memory that a training step of L2P takes on each device, for several ways to share a ViT.

Compiles for fake devices of this machine's CPU, without weights. Another backend needs other
temporary memory, but the same for arguments (weights, optimizer state, batch).

    python scripts/memory.py vit-l/16 vit-h/14
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.random as jr
import tyro

from promptax import methods, nn
from promptax.core.settings import Recipe, Schedule
from promptax.core.sharding import make_mesh
from promptax.training.train import Trainer, TrainState, compile_step

CLASSES = 100


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

    def create(self, size: str, model: int) -> tuple[Trainer, TrainState]:
        """L2P on a ViT that is split over `model` devices."""
        vit = nn.ViT(nn.vit_config(size), key=jr.key(0), dtype=self.dtype, remat=self.remat)
        recipe = Recipe(schedule=Schedule(batch_size=self.batch_size))
        mesh = make_mesh(None, model)
        return Trainer.create(methods.L2P(), vit, CLASSES, recipe, mesh=mesh, key=jr.key(0))

    def row(self, size: str, model: int) -> str:
        """A line of the table, in MiB."""
        step = compile_step(lambda: self.create(size, model), CLASSES, (256, 256, 3))
        memory = step.memory_analysis()
        assert memory is not None
        parts = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        cells = [f"{part / 2**20:.0f}" for part in (*parts, sum(parts))]
        return f"| {size} | {self.devices // model} x {model} | {' | '.join(cells)} |"


if __name__ == "__main__":
    flags = tyro.cli(Memory)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices)
    print("| ViT | data x model | arguments (MiB) | temporary (MiB) | sum (MiB) |")
    print("|---|---|---|---|---|")
    for size in flags.sizes:
        for model in (2**n for n in range(flags.devices.bit_length())):
            print(flags.row(size, model), flush=True)
