"""What `train` and `evaluate` do before anything is computed: memory, cache, processes, mesh."""

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
    """The mesh of devices, as one of several processes where these are asked for."""
    keep_freed_memory()
    tune_xla()
    if machine.compile_cache:
        keep_compiles(compiled())
    with joined(machine.distributed):
        yield make_mesh(machine.mesh.data, machine.mesh.model)
