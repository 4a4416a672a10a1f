"""Set up memory, compile cache, processes and mesh before `train` and `evaluate` compute."""

from collections.abc import Iterator
from contextlib import contextmanager

from jax.sharding import Mesh

from promptax.core.accelerator import tune_xla
from promptax.core.allocator import keep_freed_memory
from promptax.core.distributed import joined
from promptax.core.settings import Machine
from promptax.core.sharding import make_mesh
from promptax.data.location import compiled
from promptax.training.compiles import keep_compiles


@contextmanager
def started(machine: Machine) -> Iterator[Mesh]:
    """Set up this process as the settings say, and yield the mesh of devices.

    If several processes are asked for, it is one of them inside the `with` block.
    """
    keep_freed_memory()
    tune_xla()
    if machine.compile_cache:
        keep_compiles(compiled())
    with joined(machine.distributed):
        yield make_mesh(machine.mesh.data, machine.mesh.model)
