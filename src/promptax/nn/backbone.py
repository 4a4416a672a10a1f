"""What every backbone offers: images in, one feature vector for each out."""

from abc import abstractmethod
from typing import Protocol

import equinox as eqx
from jaxtyping import Array, Float, Float32


class Shape(Protocol):
    """What the config of every backbone says."""

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        ...

    @property
    def image(self) -> int:
        """Side of a square input image, in pixels."""
        ...


class AbstractBackbone(eqx.Module):
    """All that a method without prompts asks for: `ViT` and `ResNet` are the final classes."""

    config: eqx.AbstractVar[Shape]

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.config.dim

    @property
    def image(self) -> int:
        """Side of the square images that the backbone takes, in pixels."""
        return self.config.image

    @abstractmethod
    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """The feature vector of each image.

        Raises `UserError` if the images do not have the size of the model.
        """


class Statistics(eqx.Module):
    """Mean and variance of activations, as pre-training left them.

    Data, not parameters: `promptax.method.only` leaves them out wherever they are in a model.
    """

    mean: Float32[Array, " dim"]
    variance: Float32[Array, " dim"]
