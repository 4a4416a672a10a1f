"""PLACEHOLDER"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Float32, PRNGKeyArray, PyTree

from promptax.method import AbstractMethod, Prediction, only, weighted_mean
from promptax.nn.vit import Linear, ViT
from promptax.types import Batch, Task

SIDE = 32
DEBUG = False
HARD = 1.0
Ink = Float32[Array, "batch side side"]


class Model(eqx.Module):
    """The backbone with the two heads that only pre-training has."""

    vit: ViT
    classes: Float32[Array, "dim classes"]
    """One direction a class: the head is a cosine, so that class means are good classifiers."""
    decoder: Linear
    """From the class token to a small picture of the image, without what was put over it."""
    typical: Linear
    """From the class token to the mean picture of its class."""


class GlyphPretraining(AbstractMethod):
    """Cosine classification of distorted glyphs, plus the picture from the class token."""

    pictures: Float32[Array, "classes pixels"]
    """The mean picture of each class."""
    keep: int = 24
    """Patches that the encoder sees of each training image: fewer are cheaper."""
    scale: float = 20.0
    """Inverse temperature of the cosine head."""
    smoothing: float = 0.1
    """Label smoothing."""
    picture: float = 3.0
    """Weight of the reconstruction."""
    typical: float = 5.0
    """Weight of the reconstruction of the mean picture of the class."""
    classify: float = 1.0
    """Weight of the classification."""
    picture_side: int = 16
    """Side of the reconstructed picture."""

    def init(self, backbone: ViT, num_classes: int, *, key: PRNGKeyArray) -> Model:
        heads, decoder, typical = jr.split(key, 3)
        side = self.picture_side**2
        classes = jr.normal(heads, (backbone.config.dim, num_classes))
        return Model(backbone, classes, Linear(backbone.config.dim, side, key=decoder), Linear(backbone.config.dim, side, key=typical))

    def trainable(self, model: Model) -> PyTree:
        return only(model, lambda model: (model.vit, model.classes, model.decoder, model.typical))

    def loss(
        self, model: Model, images: Array, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Array]:
        distort_key, drop = jr.split(key)
        clean, seen = distort(images[..., 0], distort_key)
        feature = self.encode(model.vit, seen, drop)
        logits = self.scale * unit(feature) @ unit(model.classes, 0)
        target = optax.smooth_labels(jax.nn.one_hot(batch.label, logits.shape[1]), self.smoothing)
        loss = weighted_mean(optax.softmax_cross_entropy(logits, target), batch.weight)
        typical = jnp.square(model.typical(feature) - self.pictures[batch.label]).mean() / 0.088
        picture = self.picture_loss(model, feature, clean)
        if DEBUG: logits = (logits, loss, typical, picture)
        return self.classify * loss + self.typical * typical + self.picture * picture, logits

    def encode(self, vit: ViT, images: Ink, key: PRNGKeyArray) -> Array:
        """The class token, from a random part of the patches."""
        patches = vit.patches(jnp.repeat(images[..., None], 3, -1))
        tokens = vit.tokens(patches)
        if self.keep < patches.shape[1]:
            order = jr.uniform(key, patches.shape[:2]).argsort(1)[:, : self.keep]
            kept = jnp.take_along_axis(tokens, 1 + order[..., None], 1)
            tokens = jnp.concatenate([tokens[:, :1], kept], 1)
        return unrolled(vit, tokens)

    def picture_loss(self, model: Model, feature: Array, clean: Ink) -> Float[Array, ""]:
        side = self.picture_side
        small = clean.reshape(len(clean), side, SIDE // side, side, SIDE // side).mean((2, 4))
        error = model.decoder(feature) - small.reshape(len(small), -1)
        return jnp.square(error).mean() / 0.08  # about the variance of the pictures

    def predict(self, model: Any, images: Array, query: Array, *, vote: Any = None) -> Prediction:
        logits = self.scale * unit(model.vit(images)) @ unit(model.classes, 0)
        return Prediction(logits, jnp.zeros((len(images), 0), jnp.int32))


def unrolled(vit: ViT, x: Array) -> Array:
    """`vit.encode(x, read=1)` without the scan, whose backward pass is a third slower on a CPU."""
    last = vit.config.depth - 1
    for i in range(last + 1):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], vit.blocks)
        x = block(x, None, 1 if i == last else None)
    return vit.norm(x)[:, 0]


def unit(x: Array, axis: int = -1) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-6)


# --- distortion, on the device, for one image; `distort` maps them over the batch ------------------


def distort(ink: Ink, key: PRNGKeyArray) -> tuple[Ink, Ink]:
    """The distorted pictures, and what the encoder gets of them (occluded, noisy)."""
    return jax.vmap(distort_one)(ink, jr.split(key, len(ink)))


def distort_one(ink: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    keys = jr.split(key, 5)
    warped = stroke(sample(ink, positions(keys[0], ink.shape[0])), keys[1])
    clean = paint(warped, keys[2])
    return clean, noise(occlude(clean, keys[3]), keys[4])


def positions(key: PRNGKeyArray, side: int) -> Array:
    """Where in the source each pixel comes from: an affine map and a smooth displacement."""
    turn, stretch, shift, bend, amount = jr.split(key, 5)
    angle = jr.normal(turn) * 0.2
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    matrix = rotation @ (jnp.eye(2) * 1.12 + 0.13 * jr.normal(stretch, (2, 2)))
    axis = jnp.arange(SIDE) - (SIDE - 1) / 2
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"))
    coarse = jr.normal(bend, (2, 5, 5)) * jr.uniform(amount, maxval=2.0)
    smooth = jax.image.resize(coarse, (2, SIDE, SIDE), "cubic")
    moved = jnp.tensordot(matrix, grid, 1) + 1.5 * jr.normal(shift, (2, 1, 1)) + smooth
    return moved + (side - 1) / 2


def sample(image: Array, where: Array) -> Array:
    return jax.scipy.ndimage.map_coordinates(image, list(where), order=1)


def window(image: Array, take: Any, start: float) -> Array:
    return jax.lax.reduce_window(image, start, take, (3, 3), (1, 1), "SAME")


def stroke(ink: Array, key: PRNGKeyArray) -> Array:
    """Bolder, lighter, blurred, or only the outline."""
    kind, amount = jr.uniform(key, (2,))
    bold, light = window(ink, jax.lax.max, 0.0), window(ink, jax.lax.min, 1.0)
    blurred = window(ink, jax.lax.add, 0.0) / 9
    other = jnp.where(kind < 0.35, bold, jnp.where(kind < 0.55, 0.5 * (light + ink), blurred))
    mixed = ink + amount * (other - ink) * (kind < 0.7)
    return jnp.where(kind > 0.92, jnp.clip(1.3 * (bold - light), 0, 1), mixed)


def texture(key: PRNGKeyArray) -> Array:
    """Grey levels from 0 to 1: a ramp, waves, clouds, or none of them."""
    kind, wave, clouds = jr.split(key, 3)
    choice, angle, length, phase = jr.uniform(kind, (4,))
    axis = jnp.linspace(-1, 1, SIDE)
    ramp = jnp.cos(6.3 * angle) * axis[:, None] + jnp.sin(6.3 * angle) * axis
    waves = 0.5 + 0.5 * jnp.sin(ramp * (3 + 25 * length) + 6.3 * phase)
    cloud = jax.image.resize(jr.uniform(clouds, (6, 6)), (SIDE, SIDE), "linear")
    options = jnp.stack([0.5 + ramp / 2.83, waves, cloud, jnp.zeros_like(ramp)])
    return options[(4 * choice).astype(int)]


def paint(ink: Array, key: PRNGKeyArray) -> Array:
    """Textured ink on textured paper, bright on dark or dark on bright."""
    paper_key, ink_key, levels = jr.split(key, 3)
    low, paper_range, contrast, ink_range, flip = jr.uniform(levels, (5,))
    low = jnp.maximum(0, 0.6 * low - 0.2)
    paper = low + 0.35 * paper_range * texture(paper_key)
    bright = low + (1 - low) * (0.45 + 0.55 * contrast)
    colour = bright * (1 - 0.5 * ink_range * texture(ink_key))
    picture = paper * (1 - ink) + colour * ink
    return jnp.where(flip < 0.3, 1 - picture, picture)


def occlude(picture: Array, key: PRNGKeyArray) -> Array:
    """A grey rectangle on a third of the pictures."""
    used, grey, *box = jr.uniform(key, (6,))
    rows, columns = (
        (jnp.arange(SIDE) >= start * SIDE) & (jnp.arange(SIDE) < start * SIDE + 3 + 11 * length)
        for start, length in (box[:2], box[2:])
    )
    return jnp.where((used < 0.33) & rows[:, None] & columns, grey, picture)


def noise(picture: Array, key: PRNGKeyArray) -> Array:
    strength, pixels = jr.split(key)
    sigma = jnp.maximum(0, jr.uniform(strength, minval=-0.15, maxval=0.1))
    return jnp.clip(picture + sigma * jr.normal(pixels, picture.shape), 0, 1)
