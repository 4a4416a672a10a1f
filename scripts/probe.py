"""Measure the frozen features of a weights file by logistic regression and nearest class mean.

    python scripts/probe.py                              # glyph-vit and raw pixels
    python scripts/probe.py --weights my.npz --sets fashion_mnist --train-images 2000
    python scripts/probe.py --weights dinov2-small/model.safetensors --enlarge 112

Both classifiers see the training part only. The logistic regression's L2 strength is chosen on a
fifth of it that is held out, then it is fitted anew to all of it; the test part is scored once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from numpy.typing import NDArray
from scipy.optimize import minimize

from promptax.core.errors import UserError
from promptax.core.settings import STATISTICS
from promptax.nn.vit import ViT
from promptax.nn.weights import Weights, load_vit, read_weights

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "promptax" / "data" / "bundled"
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""L2 strengths to choose from, relative to the mean cross-entropy."""
MOST_ITERATIONS = 200
"""Of L-BFGS."""
BATCH_SIZE = 256
"""Images whose features are computed together."""
Features = NDArray[np.floating]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    """Probe frozen features."""

    weights: str = "glyph-vit"
    """Weights file, or `glyph-vit` for the bundled one."""
    sets: tuple[str, ...] = ("split_glyphs", "fashion_mnist")
    """Bundled data sets to probe on."""
    train_images: tuple[int, ...] = (2000, 0)
    """Numbers of training images; 0: all."""
    pixels: bool = True
    """Probe raw pixels too, for comparison."""
    enlarge: int | None = None
    """Enlarge images to so many pixels a side, and normalise them as the weights say. If not given,
    they are padded with black to the size of the ViT and have the range [0, 1]."""


@dataclass(frozen=True)
class Part:
    """Features and labels of one part of a set."""

    features: Features
    labels: Labels

    def standardised(self, like: Part) -> Part:
        """With features that have mean 0 and deviation 1 in the part `like`."""
        mean = like.features.mean(0)
        deviation = like.features.std(0)
        # Some pixels are the same in all images: their deviation is 0.
        return Part((self.features - mean) / (deviation + 1e-5), self.labels)


def fit(train: Part, classes: int, penalty: float) -> NDArray:
    """Fit a logistic regression by L-BFGS.

    Returns its weights `[features + 1, classes]`; the last row is the bias, which has no penalty.
    """
    inputs = jnp.pad(train.features, ((0, 0), (0, 1)), constant_values=1.0)
    shape = (inputs.shape[1], classes)

    @jax.jit
    def objective(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(loss)(flat)

    def loss(flat: jax.Array) -> jax.Array:
        weights = flat.reshape(shape)
        error = optax.softmax_cross_entropy_with_integer_labels(inputs @ weights, train.labels)
        return error.mean() + 0.5 * penalty * jnp.square(weights[:-1]).sum()

    def numpy_objective(flat: NDArray) -> tuple[float, NDArray]:
        value, gradient = objective(jnp.asarray(flat, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    start = np.zeros(shape).ravel()
    found = minimize(
        numpy_objective, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS}
    )
    return found.x.reshape(shape)


def score(weights: NDArray, test: Part) -> float:
    """Accuracy of a logistic regression."""
    guess = (test.features @ weights[:-1] + weights[-1]).argmax(1)
    return float((guess == test.labels).mean())


def linear(train: Part, test: Part, classes: int) -> float:
    """Accuracy of a logistic regression whose L2 strength is chosen on training images."""
    test = test.standardised(like=train)
    train = train.standardised(like=train)
    cut = len(train.labels) * 4 // 5  # a fifth is held out
    inner = Part(train.features[:cut], train.labels[:cut])
    held = Part(train.features[cut:], train.labels[cut:])
    best = max(PENALTIES, key=lambda penalty: score(fit(inner, classes, penalty), held))
    return score(fit(train, classes, best), test)


def nearest_mean(train: Part, test: Part, classes: int) -> float:
    """Accuracy of the class whose mean is nearest by cosine."""
    means = np.stack([train.features[train.labels == c].mean(0) for c in range(classes)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return float(((test.features @ means.T).argmax(1) == test.labels).mean())


def pixel_features(images: NDArray[np.uint8]) -> Features:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def enlarged_features(weights: Weights, size: int) -> Callable[[NDArray[np.uint8]], Features]:
    """The features of images that are enlarged and normalised as in pre-training."""
    vit = weights.build(size)
    mean, deviation = STATISTICS[weights.normalisation or "unit"]

    @eqx.filter_jit
    def forward(vit: ViT, images: jax.Array) -> jax.Array:
        grey = images.astype(jnp.float32)[..., None] / 255
        grey = jax.image.resize(grey, (len(images), size, size, 1), "bilinear")
        return vit((grey - jnp.asarray(mean)) / jnp.asarray(deviation))

    def features(images: NDArray[np.uint8]) -> Features:
        batches = np.array_split(images, math.ceil(len(images) / BATCH_SIZE))
        return np.concatenate([np.asarray(forward(vit, jnp.asarray(b))) for b in batches])

    return features


def vit_features(vit: ViT) -> Callable[[NDArray[np.uint8]], Features]:
    """The class token after the final LayerNorm; smaller images are padded with black."""

    @eqx.filter_jit
    def forward(vit: ViT, images: jax.Array) -> jax.Array:
        grey = images.astype(jnp.float32) / 255
        return vit(jnp.repeat(grey[..., None], 3, -1))

    def features(images: NDArray[np.uint8]) -> Features:
        margin = vit.config.image - images.shape[1]
        sides = (margin // 2, margin - margin // 2)
        padded = np.pad(images, np.array([(0, 0), sides, sides]))
        batches = np.array_split(padded, math.ceil(len(padded) / BATCH_SIZE))
        return np.concatenate([np.asarray(forward(vit, jnp.asarray(b))) for b in batches])

    return features


def probe(name: str, extract: Callable, count: int) -> tuple[float, float]:
    """Accuracy of the linear classifier and of the nearest mean."""
    with np.load(BUNDLED / f"{name}.npz") as file:
        chosen = slice(count or None)
        train = Part(extract(file["train_images"][chosen]), file["train_labels"][chosen])
        test = Part(extract(file["test_images"]), file["test_labels"])
        classes = len(file["class_names"])
    return linear(train, test, classes), nearest_mean(train, test, classes)


def main(config: Config) -> None:
    if config.enlarge is None:
        extract = vit_features(load_vit(config.weights))
    else:
        extract = enlarged_features(read_weights(config.weights), config.enlarge)
    extractors = {config.weights: extract}
    if config.pixels:
        extractors["raw pixels"] = pixel_features
    for name in config.sets:
        for count in config.train_images:
            for source, extract in extractors.items():
                line, mean = probe(name, extract, count)
                size = f"{count} training images" if count else "all training images"
                print(f"{name}, {size}, {source}: linear {line:.3f}, nearest mean {mean:.3f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
