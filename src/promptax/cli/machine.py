"""Set up memory, compile cache, processes and mesh before `train` and `evaluate` compute."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from jax.sharding import Mesh

from promptax.core.accelerator import tune_xla
from promptax.core.allocator import keep_freed_memory
from promptax.core.distributed import joined
from promptax.core.errors import UserError
from promptax.core.settings import Machine
from promptax.core.sharding import make_mesh
from promptax.data.location import compiled
from promptax.training.compiles import keep_compiles

_OPEN_FILES = 20
"""The files that a run on one device has been seen to need open at once."""


@contextmanager
def started(machine: Machine) -> Iterator[Mesh]:
    """Set up this process as the settings say, and yield the mesh of devices.

    If several processes are asked for, it is one of them inside the `with` block. Raises
    `UserError` if this process may not open as many files as a run needs.
    """
    _require_open_files()
    keep_freed_memory()
    tune_xla()
    if machine.compile_cache:
        keep_compiles(compiled())
    with joined(machine.distributed):
        yield make_mesh(machine.mesh.data, machine.mesh.model)


def _require_open_files() -> None:
    """With fewer, threads that write checkpoints fail with tracebacks, or wait for ever."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < _OPEN_FILES:
        raise UserError(
            f"this process may have only {allowed} files open at once, and a run needs "
            f"{_OPEN_FILES}: raise the limit with `ulimit -n 1024`."
        )
