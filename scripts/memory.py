"""Memory that a training step of L2P takes on each device: by size, batch and recomputation, and
for several ways to share a ViT over devices.

Compiles for fake devices of this machine's CPU, without weights. Another backend needs other
temporary memory, but the same for arguments (weights, optimizer state, batch).

    python scripts/memory.py vit-l/16 vit-h/14
    python scripts/memory.py vit-b/16 --devices 1 --remat nothing projections all
"""

import itertools
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
Remat = Literal["all", "projections", "nothing"]


@dataclass(frozen=True)
class Memory:
    """Print a table of the memory of a step, for every combination of what is asked for."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """ViTs, such as vit-l/16."""
    devices: int = 8
    """Devices in all; a power of 2."""
    batch_size: tuple[int, ...] = (128,)
    """Images of a step, over all devices."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The type that the ViT computes in."""
    blocks: Literal["scan", "unroll"] = "scan"
    """Loop over the blocks, or lay them out one after another."""
    remat: tuple[Remat, ...] = ("all",)
    """What the backward pass computes again."""

    def rows(self) -> None:
        """Print the table, line by line."""
        print("| ViT | batch | computed again | data x model | arguments | temporary | sum (MiB) |")
        print("|---|---|---|---|---|---|---|")
        splits = [2**power for power in range(self.devices.bit_length())]
        combinations = itertools.product(self.sizes, self.batch_size, self.remat, splits)
        for size, batch, remat, model in combinations:
            arguments, temporary = self._measure(size, batch, remat, model)
            layout = f"{self.devices // model} x {model}"
            sizes = [arguments, temporary, arguments + temporary]
            cells = [size, batch, remat, layout, *(f"{each / 2**20:.0f}" for each in sizes)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    def _measure(self, size: str, batch: int, remat: Remat, model: int) -> tuple[int, int]:
        """Bytes of the arguments and of the temporary memory, on each device."""
        execution = nn.Execution(blocks=self.blocks, remat=remat)

        def create() -> tuple[Trainer, TrainState]:
            config = nn.vit_config(size)
            vit = nn.ViT(config, key=jr.key(0), dtype=self.dtype, execution=execution)
            recipe = Recipe(schedule=Schedule(batch_size=batch))
            mesh = make_mesh(None, model)
            return Trainer.create(methods.L2P(), vit, CLASSES, recipe, mesh=mesh, key=jr.key(0))

        memory = compile_step(create, CLASSES, (256, 256, 3)).memory_analysis()
        assert memory is not None
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes


if __name__ == "__main__":
    flags = tyro.cli(Memory)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices)
    flags.rows()
