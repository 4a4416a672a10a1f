"""What `train` and `evaluate` do before anything is computed: memory, cache, processes, mesh."""

from collections.abc import Iterator
from contextlib import contextmanager

from jax.sharding import Mesh

from promptax.allocator import keep_freed_memory
from promptax.compiles import keep_compiles
from promptax.config import Machine
from promptax.data.location import compiled
from promptax.distributed import joined
from promptax.sharding import make_mesh


@contextmanager
def started(machine: Machine) -> Iterator[Mesh]:
    """The mesh of devices, as one of several processes where these are asked for."""
    keep_freed_memory()
    if machine.compile_cache:
        keep_compiles(compiled())
    with joined(machine.distributed):
        yield make_mesh(machine.mesh.data, machine.mesh.model)
