"""Where arrays live: one mesh of devices from a laptop to many hosts."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from promptax.errors import UserError
from promptax.types import Batch


def make_mesh(data: int | None = None) -> Mesh:
    """A mesh of `data` devices along which batches are split (all devices, if None).

    Raises `UserError` if there are not so many devices.
    """
    devices = jax.devices()
    data = len(devices) if data is None else data
    if not 1 <= data <= len(devices):
        raise UserError(f"a mesh of {data} devices was asked for, but there are {len(devices)}.")
    return jax.make_mesh((data,), ("data",), (AxisType.Auto,), devices=devices[:data])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device of the mesh."""
    put = lambda leaf: (
        jax.device_put(leaf, replicated(mesh)) if isinstance(leaf, jax.Array) else leaf
    )
    return jax.tree.map(put, tree)


def put_batch(host: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Send this process's share of a batch to its devices."""
    put = lambda x: jax.make_array_from_process_local_data(split(mesh), x)
    return Batch(put(host["image"]), put(host["label"]), put(host["weight"]))


def check_divides(batch_size: int, mesh: Mesh, what: str) -> None:
    """Raise `UserError` if a batch cannot be split evenly over the devices and processes."""
    if batch_size % mesh.shape["data"]:
        raise UserError(
            f"{what} {batch_size} is not divisible by the {mesh.shape['data']} devices of the mesh."
        )
