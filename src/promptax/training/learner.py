"""A trained model as a function from images to classes."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, PyTree, UInt8

from promptax.core.described import Described, Facts, some
from promptax.core.errors import UserError
from promptax.core.settings import Images
from promptax.data.augment import prepare_eval
from promptax.methods.base import AbstractMethod, no_query
from promptax.training.exported import (
    PLATFORMS,
    Platform,
    Signature,
    check_can_write,
    portable,
    serialized,
    write_program,
)
from promptax.training.saved import save_tree


class Learner(Described, eqx.Module):
    """A method's model with its preprocessing and class names: pixels in, logits out."""

    method: AbstractMethod
    model: PyTree
    state: PyTree
    """Everything that the method carries from task to task besides its model."""
    seen: Bool[Array, " classes"]
    """The classes of the tasks learned so far."""
    images: Images = eqx.field(static=True)
    class_names: tuple[str, ...] = eqx.field(static=True)

    def _facts(self) -> Facts:
        parameters = sum(
            leaf.size for leaf in jax.tree.leaves(eqx.filter(self.model, eqx.is_array))
        )
        seen = np.flatnonzero(np.asarray(self.seen))
        yield "method", type(self.method).__name__
        yield "images", f"{self.images.size} x {self.images.size} pixels to the backbone"
        yield "classes seen", f"{len(seen)} of {len(self.class_names)}"
        yield "seen", some(tuple(self.class_names[c] for c in seen))
        yield "parameters", f"{parameters:,}"

    def __call__(
        self, images: UInt8[Array, "batch height width channel"] | np.ndarray
    ) -> Float32[Array, "batch classes"]:
        """Logits over all classes of the stream, each image by itself.

        Takes uint8 images `[batch, height, width(, 1 or 3)]` of any size, and no image at all;
        raises `UserError` for anything else.
        """
        checked = _checked(images)
        if not len(checked):
            return jnp.zeros((0, len(self.class_names)))
        return _logits(self, jnp.asarray(checked))

    def save(self, path: str | Path) -> None:
        """Write the learner to a file, which `promptax.load` reads.

        The file holds the whole model with its frozen weights, and needs neither data nor weights
        beside it.

        Raises:
            UserError: The model has a leaf that cannot be saved, such as a function.
        """
        save_tree(self, Path(path))

    def export(
        self,
        path: str | Path,
        *,
        image_shape: tuple[int, int, int] | None = None,
        batch_size: int | None = None,
        platforms: tuple[Platform, ...] = PLATFORMS,
    ) -> None:
        """Write the learner as a program that needs nothing but JAX, made by `jax.export`.

        `jax.export.deserialize` reads the file, and `call` of the result maps uint8 images to the
        logits that the learner gives. Weights and preprocessing are part of the program. A JSON
        file of the same name beside it holds the class names, which of them the learner has seen,
        and the shape of the images.

        Args:
            path: The file of the program.
            image_shape: Height, width and channels of each image. If None, those of colour images
                that are resized as for `promptax predict`: the program then crops and normalises.
            batch_size: Number of images at a time; None: any number from 1 on.
            platforms: Where the program can run.

        Raises:
            UserError: The method needs to know the number of images, does not run on one of the
                platforms, or is too large; the file or the one beside it exists and is not from
                an earlier export; or flatbuffers is not installed.
        """
        path = Path(path)
        check_can_write(path)
        side = self.images.resize or self.images.size
        shape = (side, side, 3) if image_shape is None else image_shape
        signature = Signature(shape, batch_size, platforms)
        learner = portable(self)

        def logits(images):
            return _logits(learner, images)

        program = serialized(logits, signature, type(self.method).__name__)
        description = {
            "class_names": self.class_names,
            "seen": np.asarray(self.seen).tolist(),
            "resize": {
                "side": side,
                "keep_aspect": self.images.keep_aspect,
                "interpolation": self.images.interpolation,
            },
        }
        write_program(program, signature, path, description)

    def probabilities(
        self, images: UInt8[Array, "batch height width channel"] | np.ndarray
    ) -> Float32[Array, "batch classes"]:
        """Softmax over the classes seen; 0 for the others."""
        return jax.nn.softmax(jnp.where(self.seen, self(images), -jnp.inf))

    def classify(
        self, images: UInt8[Array, "batch height width channel"] | np.ndarray
    ) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[i] for i in np.asarray(self.probabilities(images).argmax(1))]


@eqx.filter_jit
def _logits(learner: Learner, images: UInt8[Array, "batch height width channel"]):
    prepared = prepare_eval(images, learner.images)
    method = learner.method
    query = no_query(prepared) if method.query is None else method.query(learner.model, prepared)
    return method.predict(learner.model, learner.state, prepared, query).logits


def _checked(images: Array | np.ndarray) -> Array | np.ndarray:
    if not isinstance(images, jax.Array | np.ndarray):
        raise UserError(f"a learner takes an array of images, got a {type(images).__name__}.")
    is_single = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3))
    if images.dtype == np.uint8 and is_single:
        raise UserError(
            f"a learner takes a batch of images, got one of shape {images.shape}: give "
            "`image[None]`, a batch of one image."
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            "a learner takes uint8 images [batch, height, width(, channel)], "
            f"got {images.dtype} {images.shape}."
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise UserError(f"a learner takes 1 or 3 channels, got {images.shape[-1]}.")
    return images
