"""Where arrays live: one mesh of devices from a laptop to many hosts.

The mesh has two axes, `data` and `model`. A batch is split over both, so that every device has
examples of its own. The parameters of a ViT's blocks, trained or not, are split over `model`, and
so are their optimizer moments; each block is gathered when it runs and dropped afterwards (FSDP, in
the variant that keeps a copy of the model for each index of `data`). Everything else is on every
device.

Why not tensor parallelism: it sends activations, four times their size per block, whereas FSDP
sends weights. With 197 tokens of width 768, weights are fewer from 12 images on for each index of
`data`. FSDP also computes the same sums as one device, does not constrain the number of heads, and
needs no change in any method.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
)
from jaxtyping import Array, PyTree

from promptax.core.errors import UserError
from promptax.core.types import RawBatch

AXES = ("data", "model")


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Make a mesh of `data` times `model` devices.

    Devices are in the order of their processes, so that a process has consecutive examples of a
    batch, and blocks are gathered within a process.

    Args:
        data: Copies of the model; as many as there are devices for if None.
        model: Devices that the blocks of a ViT are split over, in each copy.

    Raises:
        UserError: There are too few devices, or they cannot be divided evenly.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    data = _check_model(len(devices), model) if data is None else data
    if data < 1 or model < 1 or data * model > len(devices):
        raise UserError(
            f"a mesh of {data * model} devices was asked for, but there are {len(devices)} "
            f"(make_mesh(data={data}, model={model}))."
        )
    _check_processes(data * model, len(devices), model)
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def _check_model(devices: int, model: int) -> int:
    if model < 1 or devices % model:
        raise UserError(
            f"the parameters cannot be split over {model} of {devices} devices: choose a divisor "
            "for make_mesh(model=...), or give make_mesh(data=...) too, to leave some devices out."
        )
    return devices // model


def _check_processes(used: int, devices: int, model: int) -> None:
    if jax.process_count() == 1:
        return
    if used < devices:
        raise UserError(
            f"a mesh of {used} devices leaves some of the {devices} devices of "
            f"{jax.process_count()} processes out: use all, or start fewer processes."
        )
    if jax.local_device_count() % model:
        raise UserError(
            f"make_mesh(model={model}) does not divide the {jax.local_device_count()} devices of a "
            "process: parameters are split within a process only."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every array on every device of the mesh."""
    return place(tree, mesh, lambda node: False)


def place(tree: PyTree, mesh: Mesh, stacked: Callable[[Any], bool]) -> PyTree:
    """Put every array where it belongs, inside a compiled function or outside.

    Args:
        tree: The arrays.
        mesh: The devices.
        stacked: Picks nodes whose arrays stack blocks along their leading axis. These arrays are
            split over `model` if one of their other axes divides; all others are put on every
            device.
    """
    return _map(_put, tree, mesh, stacked)


def abstract(tree: PyTree, mesh: Mesh, stacked: Callable[[Any], bool]) -> PyTree:
    """Do the same as `place` with shapes instead of arrays: enough to compile without weights."""
    return _map(_placed_shape, tree, mesh, stacked)


def _map(
    put: Callable[[Any, NamedSharding], Any],
    tree: PyTree,
    mesh: Mesh,
    stacked: Callable[[Any], bool],
) -> PyTree:
    def put_node(node: PyTree) -> PyTree:
        if stacked(node):
            return jax.tree.map(lambda leaf: put(leaf, _sharding_of_stack(leaf, mesh)), node)
        return put(node, replicated(mesh))

    return jax.tree.map(put_node, tree, is_leaf=stacked)


def _placed_shape(leaf: Any, sharding: NamedSharding) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if not isinstance(leaf, jax.Array):
        return leaf
    if sharding.is_fully_addressable or not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    return from_host(np.asarray(leaf), sharding)


def from_host(values: np.ndarray, sharding: NamedSharding) -> Array:
    """Make an array of all processes from values that each of them has in full."""
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def whole(block: PyTree) -> PyTree:
    """The parameters of one block as it runs: gathered if they are split over `model`.

    Gradients are sent back to where the parameters are. Without this constraint, XLA is free to
    send activations instead.
    """
    mesh = get_abstract_mesh()
    if not is_split(mesh):
        return block
    gather = lambda leaf: _gather(mesh, leaf) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(gather, block)


def is_split(mesh: Mesh | AbstractMesh) -> bool:
    """Whether blocks are split over `model`."""
    return mesh.shape.get("model", 1) > 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: AbstractMesh, leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec()))


def _gather_forward(mesh: AbstractMesh, leaf: Array) -> tuple[Array, None]:
    return _gather(mesh, leaf), None


def _gather_backward(mesh: AbstractMesh, _: None, grad: Array) -> tuple[Array]:
    spec = _spec(grad.shape, mesh)
    return (jax.lax.with_sharding_constraint(grad, NamedSharding(mesh, spec)),)


_gather.defvjp(_gather_forward, _gather_backward)


def _sharding_of_stack(leaf: Array | jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, *_spec(leaf.shape[1:], mesh)))


def _spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Split the largest axis that divides, the first of equal ones; none if none divides."""
    model = mesh.shape["model"]
    axes = [axis for axis, size in enumerate(shape) if size % model == 0]
    if model == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "model")


def put_batch(host: dict[str, np.ndarray], mesh: Mesh) -> RawBatch:
    """Send this process's share of a batch to its devices."""
    put = lambda x: jax.make_array_from_process_local_data(split(mesh), x)
    return RawBatch(**{name: put(values) for name, values in host.items()})


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The next batch size that divides over the devices, for a batch whose size does not matter."""
    return -(-batch_size // mesh.size) * mesh.size


def check_divides(batch_size: int, mesh: Mesh, what: str) -> None:
    """Raise `UserError` if a batch cannot be split evenly over the devices and processes."""
    if batch_size % mesh.size:
        raise UserError(
            f"{what} {batch_size} is not divisible by the {mesh.size} devices of the mesh."
        )
