"""What every backbone offers: images in, one feature vector for each out."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float, Float32


class AbstractBackbone(eqx.Module):
    """All that a method without prompts asks for: `ViT` and `ResNet` are the final classes."""

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
        """The feature vector of each image.

        Raises `UserError` if the images do not have the size of the model.
        """


class Statistics(eqx.Module):
    """Mean and variance of activations, as pre-training left them.

    Data, not parameters: `promptax.methods.base.only` leaves them out wherever they are in a model.
    """

    mean: Float32[Array, " dim"]
    variance: Float32[Array, " dim"]
