"""A backbone and a head: the model of every method without prompts."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import Linear


class Classifier(eqx.Module):
    """A linear head, zero at first, on the features of a backbone."""

    backbone: AbstractBackbone
    head: Linear

    def __init__(self, backbone: AbstractBackbone, num_classes: int):
        self.backbone, self.head = backbone, Linear(backbone.dim, num_classes)

    def features(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch dim"]:
        """What the head sees, in float32 whatever the backbone computes in."""
        return self.backbone(images).astype(jnp.float32)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch classes"]:
        """Logits over all classes."""
        return self.head(self.features(images))
