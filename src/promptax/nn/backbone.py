"""The interface of a backbone: a feature vector for each image."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float, Float32


class AbstractBackbone(eqx.Module):
    """A backbone as methods without prompts use it; `ViT` and `ResNet` implement it."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a feature vector."""

    @property
    @abstractmethod
    def image(self) -> int:
        """Side of the square images that the backbone takes, in pixels."""

    @abstractmethod
    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """Compute the feature vector of each image.

        Raises:
            UserError: the images do not have the size of the model.
        """


class Statistics(eqx.Module):
    """Mean and variance of activations, as they were after pre-training.

    They are not parameters: `promptax.methods.base.only` never selects them for training.
    """

    mean: Float32[Array, " dim"]
    variance: Float32[Array, " dim"]
