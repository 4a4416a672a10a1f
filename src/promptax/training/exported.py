"""A learner as a program of its own: a file that JAX runs without this library.

The file is what `jax.export` serialises, weights included. Beside it, a JSON file says what goes in
and what comes out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import PyTree

from promptax.core.bounds import MOST_IN_BATCH, require
from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.files import (
    draft_of,
    read_json,
    replacing,
    require_replaceable,
    write_json,
    writing,
)
from promptax.core.text import format_bytes
from promptax.nn.execution import Execution
from promptax.nn.vit import ViT

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
"""What a program can be compiled for later."""
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
_MOST_BYTES = 2**31 - 2**20
"""Flatbuffers, which the file is written with, end at 2 GiB; the rest is for what else is in it."""

_LARGEST_SIDE = 2**14
"""Longest side of an image in pixels; a typing error would otherwise take all memory."""


@dataclass(frozen=True)
class Signature:
    """The images that an exported program takes, and where it runs."""

    image_shape: tuple[int, int, int]
    """Height, width and channels of each image."""
    batch_size: int | None = None
    """Number of images at a time; None: any number."""
    platforms: tuple[Platform, ...] = PLATFORMS
    """The platforms that it can run on."""

    def __post_init__(self):
        self._check_platforms()
        check_fields(self)
        height, width, channels = self.image_shape
        sides = (height, width)
        fits = min(sides) >= 1 and max(sides) <= _LARGEST_SIDE and channels in (1, 3)
        expected = (
            f"a height and a width of at least 1 and at most {_LARGEST_SIDE}, and 1 or 3 channels"
        )
        require(fits, "image shape", self.image_shape, expected)
        if self.batch_size is not None:
            fits = 1 <= self.batch_size <= MOST_IN_BATCH
            expected = f"at least 1 and at most {MOST_IN_BATCH}, or None"
            require(fits, "batch size", self.batch_size, expected)

    def _check_platforms(self) -> None:
        known = get_args(Platform)
        platforms: Any = self.platforms
        fits = (
            isinstance(platforms, tuple)
            and len(platforms) > 0
            and all(platform in known for platform in platforms)
            and len(set(platforms)) == len(platforms)
        )
        expected = f"a tuple of one or more of {', '.join(known)}, each at most once"
        require(fits, "platforms", repr(platforms), expected)

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """The images of a batch, whose number is a symbol if it is free."""
        batch = "batch" if self.batch_size is None else self.batch_size
        shape = jax.export.symbolic_shape(f"{batch}, " + ", ".join(map(str, self.image_shape)))
        return jax.ShapeDtypeStruct(shape, jnp.uint8)

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """The images of a batch of a certain size."""
        return jax.ShapeDtypeStruct((self.batch_size or 2, *self.image_shape), jnp.uint8)


def description_of(path: Path) -> Path:
    """The file that describes a program: `model.jax.json` for `model.jax`."""
    return path.with_name(f"{path.name}.json")


def check_can_write(path: Path) -> None:
    """Raise `UserError` if a program cannot be written to the file, before it is traced.

    Of the files that are there already, only an earlier program and its description are replaced.
    """
    if find_spec("flatbuffers") is None:
        raise UserError("export needs flatbuffers: pip install 'promptax[export]'.")
    require_replaceable(path)
    beside = description_of(path)
    require_replaceable(beside)
    require_replaceable(draft_of(beside))  # whose name is longer, and can be too long
    is_exported = _describes_program(beside)
    for file in (path, beside):
        if file.exists() and not is_exported:
            raise UserError(
                f"'{file}' exists, and is not from an earlier export: give the program another "
                "name, or remove that file."
            )


def _describes_program(path: Path) -> bool:
    """Whether a file is what `write_program` writes beside a program."""
    try:
        content = read_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and {"image_shape", "platforms", "versions"} <= content.keys()


def portable(tree: PyTree) -> PyTree:
    """The tree on a single device, with operations that every platform has.

    What else depends on the device at hand, such as its memory, is settled here too.
    """
    device = jax.local_devices()[0]
    execution = Execution("plain", blocks="scan", remat="nothing", elementwise="saved")

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, ViT):
            vit = jax.tree.map(moved, leaf, is_leaf=eqx.is_array)
            # A static field, of a class with an `__init__` of its own: `vit` is a copy by now.
            object.__setattr__(vit, "execution", execution)
            return vit
        return jax.device_put(leaf, device) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(moved, tree, is_leaf=lambda leaf: isinstance(leaf, ViT))


def serialized(function: Callable[[Any], Any], signature: Signature, name: str) -> bytes:
    """Serialise a function of images, together with the arrays that it refers to.

    Args:
        function: From images to an array.
        signature: The images and the platforms.
        name: What errors call the function.

    Raises:
        UserError: The function needs to know the number of images, does not run on one of the
            platforms, or is too large.
    """
    try:
        exported = jax.export.export(jax.jit(function), platforms=signature.platforms)(
            signature.images
        )
    except Exception as error:
        # What is wrong with a batch of a certain size, too, is no matter of exporting it.
        jax.eval_shape(function, signature.example)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        free = "for any batch size " if signature.batch_size is None else ""
        advice = "give a batch size, or " if signature.batch_size is None else ""
        raise UserError(
            f"{name} cannot be exported {free}on {', '.join(signature.platforms)} ({reason}): "
            f"{advice}choose fewer platforms."
        ) from error
    size = len(exported.mlir_module_serialized)
    if size > _MOST_BYTES:
        raise UserError(
            f"{name} takes {format_bytes(size)} with its weights; an exported file can hold "
            f"{format_bytes(_MOST_BYTES)} at most."
        )
    return bytes(exported.serialize())


def write_program(
    program: bytes, signature: Signature, path: Path, description: dict[str, Any]
) -> None:
    """Write a program and, beside it, its description.

    Args:
        program: What `serialized` gives.
        signature: The images that it takes.
        path: The file of the program.
        description: What else there is to say about it.
    """
    described = {
        "image_shape": [int(length) for length in signature.image_shape],
        "image_type": "uint8",
        "batch_size": None if signature.batch_size is None else int(signature.batch_size),
        "platforms": signature.platforms,
        **description,
        "versions": {name: version(name) for name in ("jax", "promptax")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its description, a program would not be known as one that may be replaced.
    write_json(description_of(path), described)
    with writing(path), replacing(path) as draft:
        draft.write_bytes(program)
