"""A backbone and a linear head: the model of every method without prompts."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import Linear


class Classifier(eqx.Module):
    """A linear head on the features of a backbone; the head is zero at first."""

    backbone: AbstractBackbone
    head: Linear

    def __init__(self, backbone: AbstractBackbone, num_classes: int):
        """Put a new head for `num_classes` classes on a backbone."""
        self.backbone = backbone
        self.head = Linear(backbone.dim, num_classes)

    def features(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch dim"]:
        """The features of normalised images, in float32 whatever type the backbone computes in."""
        return self.backbone(images).astype(jnp.float32)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch classes"]:
        """The logits over all classes."""
        return self.head(self.features(images))
