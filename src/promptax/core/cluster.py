"""The neighbours and GPUs of this process, according to the variables of a scheduler or of MPI.

If Slurm or Open MPI has started a process, JAX gives it a single GPU: the one that has the number
of the process on its node. That is right only if there is one process for each GPU: a single
process would leave all other GPUs of its node idle, and one that sees only its own would ask for a
GPU that is not there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from promptax.core.errors import UserError

SLURM_NEEDED = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""The variables that JAX reads in a job of Slurm. Only `srun` sets all of them."""
OPEN_MPI = "OMPI_MCA_orte_hnp_uri"
"""The variable of Open MPI that JAX reads; its version 5 no longer sets it."""
_RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "PMIX_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
"""Variables by which MPI tells a process its number, and the number of all."""
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class Neighbours:
    """The processes of a job on the node of this one."""

    count: int
    """How many there are, this one included."""
    number: int
    """The number of this one among them, from 0."""


def local_device_ids(environ: Mapping[str, str], gpus: int) -> list[int] | None:
    """The GPUs that this process is to use.

    They are all that it sees if it is the only process on its node, or if the scheduler shows it
    its own only. Otherwise the processes of a node share its GPUs evenly.

    Args:
        environ: The environment of the process.
        gpus: How many GPUs the process sees.

    Returns:
        Their numbers among those that it sees; None to leave it to JAX, which takes all devices if
        no scheduler is there.

    Raises:
        UserError: The GPUs of a node cannot be shared evenly.
    """
    neighbours = neighbours_of(environ)
    if not gpus or neighbours is None or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    has_own = "SLURM_GPUS_PER_TASK" in environ or gpus < neighbours.count
    if has_own or neighbours.count == 1:
        return list(range(gpus))
    share, rest = divmod(gpus, neighbours.count)
    if rest:
        raise UserError(
            f"{neighbours.count} processes on a node cannot share its {gpus} GPUs evenly: start "
            "one process for each GPU, or one for all of them."
        )
    first = neighbours.number * share
    return list(range(first, first + share))


def neighbours_of(environ: Mapping[str, str]) -> Neighbours | None:
    """The processes on this node, by Slurm or Open MPI; None if neither says so."""
    if all(name in environ for name in SLURM_NEEDED):
        counts = _slurm_counts(environ)
        node = int(environ.get("SLURM_NODEID", "0"))
        count = counts[node] if node < len(counts) else int(environ["SLURM_NTASKS"])
        return Neighbours(count, int(environ["SLURM_LOCALID"]))
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ and "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        return Neighbours(
            int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(environ["OMPI_COMM_WORLD_LOCAL_RANK"])
        )
    return None


def _slurm_counts(environ: Mapping[str, str]) -> list[int]:
    """The number of tasks of each node of a step, which Slurm writes as `8(x2),4`."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def how_to_join(environ: Mapping[str, str]) -> str:
    """Advice for a job in which JAX does not find the other processes."""
    if "SLURM_JOB_ID" in environ:
        missing = [name for name in SLURM_NEEDED if name not in environ]
        if missing:
            return (
                f"this is a job of Slurm, but not a step of it ({', '.join(missing)} not set): "
                "start the command with srun"
            )
    for rank, size in _RANKS:
        if rank in environ and OPEN_MPI not in environ:
            return (
                "MPI started this process, but does not tell JAX where the others are: give "
                f"Distributed(coordinator=HOST:PORT, processes=${size}, process=${rank}), "
                "with the host of process 0"
            )
    return (
        "start with Slurm, GKE, Cloud TPU or Open MPI, or give "
        "Distributed(coordinator=..., processes=..., process=...)"
    )


def visible_gpus(environ: Mapping[str, str], devices: Path = _DEVICES) -> int:
    """How many NVIDIA GPUs this process sees; JAX is not asked, since that would start it."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in devices.glob("nvidia*") if path.name[6:].isdecimal()])
