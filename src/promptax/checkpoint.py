"""Checkpoints (Orbax): the trained leaves and what is needed to go on, after every task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from promptax.errors import UserError
from promptax.train import TrainState

FORMAT = 1
"""Version of what is written here."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, by the number of stages completed.

    A checkpoint holds the trainable leaves, the optimizer's state, step, key, and a JSON
    record of the caller's. Frozen leaves come from the weights file.
    """

    folder: Path
    keep: int = 2

    def save(self, stages: int, state: TrainState, record: dict[str, Any]) -> None:
        """Write, and return once it is complete on disk."""
        with self._manager() as manager:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(_to_dict(state)),  # pyright: ignore[reportCallIssue]
                record=ocp.args.JsonSave({"format": FORMAT, **record}),  # pyright: ignore[reportCallIssue]
            )
            manager.save(stages, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, in the shape and placement of `like`; None if there is none.

        Raises `UserError` that names the leaf where a checkpoint is of another model, and one
        that names the folder where it cannot be read.
        """
        if not self.folder.is_dir():
            return None
        with self._manager() as manager:
            step = manager.latest_step()
            return None if step is None else self._read(manager, step, like)

    def _read(self, manager: ocp.CheckpointManager, step: int, like: TrainState):
        wanted = _to_dict(like)
        path = self.folder / str(step)
        try:
            self._check(path, wanted)
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(_abstract, wanted)),  # pyright: ignore[reportCallIssue]
                record=ocp.args.JsonRestore(),
            )
            restored = manager.restore(step, args=items)
        except UserError:
            raise
        except Exception as error:
            # Orbax lets through whatever its storage layers raise on a damaged folder.
            reason = str(error).split("\n")[0][:120]
            raise UserError(
                f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}): remove "
                "this folder to resume from the one before."
            ) from None
        return _from_dict(restored["state"], like), restored["record"]

    def _check(self, path: Path, wanted: dict[str, Array]) -> None:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(path.absolute() / "state").item_metadata
        if stored is None:
            raise UserError(
                f"checkpoint {path} is damaged: remove this folder to resume from the one before."
            )
        stored = dict(stored.tree)
        for name in sorted({*stored, *wanted}):
            if name not in stored or name not in wanted:
                where = "lacks" if name not in stored else "has a foreign"
                raise UserError(f"checkpoint {path} {where} leaf '{name}': another method?")
            came = (tuple(stored[name].shape), np.dtype(stored[name].dtype))
            expected = (wanted[name].shape, np.dtype(wanted[name].dtype))
            if came != expected:
                raise UserError(f"checkpoint {path}: '{name}' should be {expected}, but is {came}.")

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep, enable_async_checkpointing=False
        )
        names = ("state", "record")
        return ocp.CheckpointManager(self.folder.absolute(), options=options, item_names=names)


def _to_dict(state: TrainState) -> dict[str, Array]:
    """The arrays of a state by their path in it; keys as their data, which Orbax can write."""
    leaves = jax.tree.leaves_with_path(eqx.filter(state, eqx.is_array))
    return {jax.tree_util.keystr(path): _data(leaf) for path, leaf in leaves}


def _from_dict(values: dict[str, Array], like: TrainState) -> TrainState:
    def fill(path: Any, leaf: Any) -> PyTree:
        if not eqx.is_array(leaf):
            return leaf
        value = values[jax.tree_util.keystr(path)]
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(value) if is_key else value

    return jax.tree.map_with_path(fill, like)


def _data(leaf: Array) -> Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
