"""Checks of what training is given, before anything is computed.

Messages name settings as Python does, such as `Images(size=32)`; the command line shows the flags.
"""

import logging
import math
import numbers

from jax.sharding import Mesh

from promptax.core.errors import UserError
from promptax.core.settings import Recipe, Schedule
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.nn.backbone import AbstractBackbone

LOGGER = logging.getLogger("promptax")

SEEDS = 2**32
"""The number of seeds that there are."""
FEW_STEPS = 30
"""Optimizer steps below which a task is hardly learned."""
ENOUGH_STEPS = 100
"""Optimizer steps of a task that the advice aims at."""


def check_arguments(method: object, stream: object, backbone: object, recipe: object) -> None:
    """Check that a method, a stream, a backbone and a recipe are what they should be.

    Raises:
        UserError: One of them is something else, or the recipe prepares images in another size
            than the backbone takes.
    """
    check_method(method)
    check_stream(stream)
    check_backbone(backbone)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"the recipe is a {_kind(recipe)}; expected a px.Recipe, such as "
            "px.Recipe(schedule=px.Schedule(epochs=3))."
        )
    assert isinstance(backbone, AbstractBackbone), "checked above"
    size = recipe.images.size
    if size != backbone.image:
        raise UserError(
            f"images are prepared in {size} x {size} pixels, but the backbone takes "
            f"{backbone.image} x {backbone.image}: use Images(size={backbone.image}), or load the "
            f"weights for images of {size} pixels."
        )


def checked_seed(seed: object) -> int:
    """A seed as a plain number, such as the one of `numpy.int64(3)`.

    Raises:
        UserError: It is no whole number from 0 to 2^32.
    """
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        number = int(seed)
        if 0 <= number < SEEDS:
            return number
    raise UserError(f"seed is {seed!r}; expected a number from 0 to 2^32.")


def check_mesh(mesh: object) -> None:
    """Raise `UserError` if a mesh is something else."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise UserError(
            f"the mesh is a {_kind(mesh)}; expected a jax.sharding.Mesh, such as jax.make_mesh "
            "makes, or None for all devices."
        )


def check_stream(stream: object) -> None:
    """Raise `UserError` if a stream is something else."""
    if not isinstance(stream, TaskStream):
        raise UserError(
            f"the stream is a {_kind(stream)}; expected a TaskStream, such as "
            "px.data.split_glyphs(), or px.data.class_incremental(train, test, num_tasks=5) of "
            "your own sources."
        )


def check_backbone(backbone: object) -> None:
    """Raise `UserError` if a backbone is something else."""
    if not isinstance(backbone, AbstractBackbone):
        load = f"load it with px.nn.load_vit({backbone!r})" if isinstance(backbone, str) else ""
        advice = load or "such as px.nn.load_vit('glyph-vit')"
        raise UserError(f"the backbone is a {_kind(backbone)}; expected a model: {advice}.")


def check_method(method: object) -> None:
    """Raise `UserError` if a method is something else, such as its class or its name."""
    if isinstance(method, AbstractMethod):
        return
    if isinstance(method, type) and issubclass(method, AbstractMethod):
        raise UserError(f"the method is the class {method.__name__}: give an instance of it.")
    raise UserError(
        f"the method is a {_kind(method)}; expected a method, such as px.methods.L2P() or "
        "px.preset('split-glyphs-l2p').method."
    )


def warn_of_few_steps(schedule: Schedule, stream: TaskStream) -> None:
    """Warn if a task is trained for so few steps that little can be learned of it."""
    counts = [len(task.index) for task in stream.tasks]
    fewest = min(counts)
    steps = schedule.steps(fewest)
    if steps >= FEW_STEPS:
        return
    number = 1 + counts.index(fewest)
    epochs = math.ceil(ENOUGH_STEPS * schedule.batch_size / fewest)
    LOGGER.warning(
        f"task {number} has {fewest} training images, so it is trained for only {steps} steps of "
        f"{schedule.batch_size} images and may not learn much: try Schedule(epochs={epochs}), or "
        f"smaller batches with Schedule(batch_size={_smaller(schedule.batch_size)})."
    )


def _smaller(batch_size: int) -> int:
    return max(1, min(16, batch_size // 4))


def _kind(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
