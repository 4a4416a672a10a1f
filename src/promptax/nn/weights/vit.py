"""Weights of a ViT as they were read from a file, and the ViT that they make."""

from dataclasses import dataclass
from typing import Any, Literal

from promptax.core.settings import Normalisation
from promptax.nn.execution import AUTO, Execution
from promptax.nn.vit import ViT, ViTConfig
from promptax.nn.weights.check import Leaves, Shape, check_leaves, count_blocks, shape_of
from promptax.nn.weights.leaves import (
    ATTENTION,
    BLOCK,
    HIDDEN,
    PATCH,
    POSITION,
    REGISTERS,
    leaf_shapes,
    skeleton,
    vit_from_leaves,
)
from promptax.nn.weights.metadata import Metadata
from promptax.nn.weights.position import resize_position
from promptax.nn.weights.structure import Sizes, config_of


@dataclass(frozen=True)
class Weights:
    """Weights of a ViT as they were read; `build` makes the ViT."""

    name: str
    """The name of the file, without its folder."""
    sha256: str
    """The digest of the file; of all shards one after the other, if there are several."""
    leaves: Leaves
    """The parameters under the names and in the shapes of Google's files; see `leaves.py`."""
    dropped: tuple[str, ...]
    """Arrays of the file that are not used, such as the classifier of the checkpoint."""
    metadata: Metadata = Metadata()

    @property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of the images in pre-training, or None if it is not known."""
        return self.metadata.normalisation

    def facts(self) -> dict[str, Any]:
        """The record of the weights in the results of a run; it can be stored as JSON."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "family": self.metadata.family,
            "source": self.metadata.source,
            "licence": self.metadata.licence,
            "normalisation": self.normalisation,
            "dropped": list(self.dropped),
        }

    def config(self, image: int | None = None) -> ViTConfig:
        """The config of the ViT, for images of `image` pixels a side or those of pre-training.

        Raises `UserError` if a leaf that determines the shape is missing or has the wrong rank.
        """
        patch, _, channels, dim = self._shape(PATCH, rank=4)
        _, heads, _ = self._shape(BLOCK.format(0) + ATTENTION + "key/kernel", rank=3)
        _, mlp = self._shape(BLOCK.format(0) + HIDDEN + "kernel", rank=2)
        registers = self._shape(REGISTERS, rank=3)[1] if REGISTERS in self.leaves else 0
        positions = self._shape(POSITION, rank=3)[1] if POSITION in self.leaves else None
        sizes = Sizes(
            patch=patch,
            dim=dim,
            channels=channels,
            depth=count_blocks(self.leaves, BLOCK),
            heads=heads,
            mlp=mlp,
            registers=registers,
            positions=positions,
        )
        return config_of(
            self.name,
            self.leaves,
            sizes,
            self.metadata,
            position_name=POSITION,
            image=image,
        )

    def _shape(self, leaf: str, rank: int) -> Shape:
        return shape_of(self.name, self.leaves, leaf, rank)

    def build(
        self,
        image: int | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        execution: Execution = AUTO,
    ) -> ViT:
        """Build the ViT.

        Args:
            image: side of the square images that it takes, in pixels; that of pre-training, if
                None. The position embedding is resized for another size.
            dtype: the type that it computes in; the parameters stay in float32.
            execution: how it is computed, which changes speed and memory but not the features.

        Raises:
            UserError: a leaf is missing, unknown, misshaped or not finite. The message names it,
                what was expected and what came.
        """
        config = self.config(image)
        expected = leaf_shapes(config)
        leaves = dict(self.leaves)
        positions = config.learned_positions
        if positions:
            # The position embedding of the file is for the image size of pre-training. `config` has
            # checked that it fits a square of patches.
            expected[POSITION] = (1, self.leaves[POSITION].shape[1], config.dim)
        check_leaves(self.name, expected, leaves)
        if positions:
            leaves[POSITION] = resize_position(
                leaves[POSITION],
                positions,
                prefix=positions - config.patches,
                method=self.metadata.resize or "bilinear",
            )
        return vit_from_leaves(skeleton(config, dtype, execution), leaves)
