"""Pre-trained weights as they were read, and the ViT that they make."""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax.random as jr

from promptax.core.settings import Normalisation
from promptax.nn.execution import AUTO, Execution
from promptax.nn.vit import ViT, ViTConfig
from promptax.nn.weights.about import About
from promptax.nn.weights.leaves import (
    ATTENTION,
    BLOCK,
    HIDDEN,
    PATCH,
    POSITION,
    PRE_NORM,
    Leaves,
    check_leaves,
    count_blocks,
    leaf_shapes,
    resize_position,
    shape_of,
    square,
    vit_from_leaves,
)


@dataclass(frozen=True)
class Weights:
    """A checkpoint as it was read: which file, which bytes, and what of it is not used."""

    name: str
    sha256: str
    leaves: Leaves
    """Under the names and in the shapes of Google's files, whatever the file has."""
    dropped: tuple[str, ...]
    """Leaves of the file that a continual learner has no use for, such as its classifier."""
    about: About = About()

    @property
    def normalisation(self) -> Normalisation | None:
        """How images were scaled in pre-training; None: not known."""
        return self.about.normalisation

    def facts(self) -> dict[str, Any]:
        """What a result says of its weights."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "family": self.about.family,
            "source": self.about.source,
            "licence": self.about.licence,
            "normalisation": self.normalisation,
            "dropped": list(self.dropped),
        }

    def config(self, image: int | None = None) -> ViTConfig:
        """The shape of the ViT that these weights are of, for images of another size if given.

        Raises `UserError` where a leaf that tells the shape is missing or has the wrong rank.
        """
        kernel = self._shape(PATCH, 4)
        heads = self._shape(BLOCK.format(0) + ATTENTION + "key/kernel", 3)
        mlp = self._shape(BLOCK.format(0) + HIDDEN + "kernel", 2)
        grid = square(self.name, POSITION, self._shape(POSITION, 3)[1])
        about = self.about.known()
        return ViTConfig(
            patch=kernel[0],
            dim=kernel[3],
            depth=count_blocks(self.leaves, BLOCK),
            heads=heads[1],
            mlp=mlp[1],
            image=grid * kernel[0] if image is None else image,
            channels=kernel[2],
            pre_norm=any(name.startswith(PRE_NORM) for name in self.leaves),
            **{name: about[name] for name in ("activation", "norm_eps", "pooling") & about.keys()},
        )

    def _shape(self, leaf: str, rank: int) -> tuple[int, ...]:
        return shape_of(self.name, self.leaves, leaf, rank)

    def build(
        self,
        image: int | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        execution: Execution = AUTO,
    ) -> ViT:
        """Build the ViT; its position embedding is resized for another image size.

        Raises `UserError` that names the leaf which is missing, unknown, misshaped or not
        finite, what was expected and what came.
        """
        config = self.config(image)
        make = lambda: ViT(config, key=jr.key(0), dtype=dtype, execution=execution)
        skeleton, expected = eqx.filter_eval_shape(make), leaf_shapes(config)
        # The number of tokens is right (see `config`), if perhaps not that of this image size.
        tokens = expected[POSITION][1]
        expected[POSITION] = (1, self.leaves[POSITION].shape[1], config.dim)
        check_leaves(self.name, expected, self.leaves)
        position = resize_position(self.leaves[POSITION], tokens)
        return vit_from_leaves(skeleton, {**self.leaves, POSITION: position})
