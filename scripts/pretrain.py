"""Pre-train the bundled backbone, `glyph-vit`, on glyphs of non-Latin scripts.

    python scripts/make_glyphs.py --what pretrain      # build/glyphs.npz, a minute
    python scripts/pretrain.py                         # 40,539 steps, two hours on two busy cores
    python scripts/probe.py

(`XLA_FLAGS=--xla_cpu_prefer_vector_width=512` makes it a tenth faster where AVX-512 exists.)

Stop it at any time: the same command goes on from the last checkpoint in `build/glyph-vit`. It
uses the library's ViT, loader, step and checkpoints; what is new here is the objective, which is a
method like any other, and the distortion of the images, which is drawn anew at every step.

The weights in the package are what this command gives with its defaults (seed 0): 4,112 classes,
36 epochs in batches of 64, 2.6 million distorted images. Other machines round otherwise, so bytes
will differ.

What was tried, by short runs on one core. CE is the training cross-entropy where the run stopped
(ln 2672 = 7.9); `glyphs` and `Fashion` are linear probes inside the *training* parts of the bundled
sets (glyphs: one third of the font families held out, an earlier, harder cut of split-glyphs).

| patch, width, MLP | images | what | CE | glyphs | Fashion, 2,000 |
|---|---|---|---|---|---|
| 4, 128, 512 | 32 k | 16 of 64 patches, no class pictures, Muon | about chance | | |
| 8, 128, 512 | 45 k | class pictures, Adam 1e-3, N(0, 1) directions | about chance | 0.07 | 0.746 |
| 8, 128, 512 | 16 k | the same without distortion | 8.2 | | |
| 8, 128, 512 | 16 k | no distortion, short directions, Adam 3e-3 | 6.9 | | |
| 8, 128, 512 | 13 k | the same with mimetic attention | 7.7 | | |
| 8, 160, 320 | 13 k | a strength of distortion for each image, Adam 3e-3, batch 64 | 8.0 | | |
| 8, 160, 320 | 13 k | the same with Muon, 4e-3: a third fewer images a second | 8.0 | | |
| 8, 160, 320 | 35 k | Adam, as two rows above | 7.4 | 0.12 | 0.757 |
| 8, 160, 320 | 110 k | batch 32, Adam 2e-3 | 4.9 | 0.38 | 0.814 |
| 8, 160, 320 | 272 k | the same | 3.8 | 0.52 | 0.823 |
| 8, 160, 320 | 680 k | the same, at its end | 2.8 | | |

(Single short runs of unequal length: they show what is slow, not what is best in the end.) The
last row, on every third class, had 0.901 in a linear probe of split-glyphs with a random fifth of
its training part held out. The final run, on every second class in batches of 64 with Adam at
2.8e-3, had 0.894 there after 570 k images, long before its rate had fallen, and 0.957 after 2.1
million.

`probe.py` measures the features on the test parts; the README has the figures.
The glyphs of split-glyphs were made larger and bent less after an earlier backbone's features on
the training part had shown that the first cut was too hard.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Float32, PRNGKeyArray, PyTree
from make_fashion_mnist import BUNDLED as FOLDER
from make_fashion_mnist import write_npz
from numpy.typing import NDArray

from promptax.core.errors import UserError
from promptax.core.settings import Images, Optimizer, Recipe, Schedule
from promptax.core.types import Batch, Task
from promptax.data.source import ArraySource, read_arrays
from promptax.data.stream import Split, TaskStream
from promptax.methods.base import AbstractMethod, Prediction, only
from promptax.methods.components.losses import weighted_mean
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.vit import Linear, ViT, ViTConfig
from promptax.nn.weights import BUNDLED, vit_leaves
from promptax.nn.weights.npz import METADATA
from promptax.runs.checkpoint import Checkpoints
from promptax.training.loop import StepDone, train_task
from promptax.training.position import StreamPosition
from promptax.training.state import Metrics, TrainState
from promptax.training.trainer import Trainer

NAME = "glyph-vit"
"""Of the weights in the package."""
BUILD = Path(__file__).resolve().parents[1] / "build"
SIDE = 32
"""Side of the images that the backbone takes."""
PICTURE = 16
"""Side of the pictures that the class token is asked for."""
VARIANCE = 0.08
"""About the variance of those pictures: errors are relative to it."""
REPORT_EVERY = 100
"""Steps between two lines of the report."""
ARCHITECTURE = ViTConfig(patch=8, dim=160, depth=6, heads=5, mlp=320, image=SIDE)
Ink = Float32[Array, "batch side side"]


@dataclass(frozen=True)
class Config:
    """Pre-train glyph-vit."""

    glyphs: Path = BUILD / "glyphs.npz"
    """What `make_glyphs.py --what pretrain` wrote."""
    run: Path = BUILD / "glyph-vit"
    """Folder of the checkpoints."""
    out: Path = FOLDER / BUNDLED[NAME].file
    """The weights file to write in the end."""
    every: int = 2
    """Use every so many-th class."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            name="adamw", learning_rate=0.0112, schedule="cosine", warmup=0.03, weight_decay=0.05
        )
    )
    """The update rule."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=36, batch_size=64))
    """How long, in which batches."""
    save_every: int = 1000
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of weights, order and distortion."""


class Model(eqx.Module):
    """The backbone with the heads that only pre-training has."""

    vit: ViT
    classes: Float32[Array, "dim classes"]
    """One direction a class: the head is a cosine, so that class means are good classifiers."""
    decoder: Linear
    """From the class token to a small picture of the image, without what was put over it."""
    typical: Linear
    """From the class token to the mean picture of its class."""


class GlyphPretraining(AbstractMethod):
    """Cosine classification, and two pictures that a linear map must read off the class token.

    The mean picture of the class is the lesson that a ViT learns fastest (256 numbers an image,
    not one name of thousands), and is what makes unknown glyphs fall apart into clusters; the
    image's own picture keeps what no class needs: shading, slant, size.
    """

    pictures: Float32[Array, "classes pixels"]
    """The mean picture of each class."""
    scale: float = 20.0
    """Inverse temperature of the cosine head."""
    smoothing: float = 0.1
    """Label smoothing."""
    own_weight: float = 3.0
    """Weight of the image's own picture."""
    class_weight: float = 5.0
    """Weight of the mean picture of the class."""

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: PRNGKeyArray
    ) -> tuple[Model, None]:
        """Class directions start short, so that Adam's steps of fixed length turn them fast."""
        assert isinstance(backbone, ViT), "what is pre-trained here is a ViT"
        dim = backbone.dim
        classes = 0.03 * jr.normal(key, (dim, stream.num_classes))
        return Model(backbone, classes, Linear(dim, PICTURE**2), Linear(dim, PICTURE**2)), None

    def trainable(self, model: Model, task: Task) -> PyTree:
        """Everything."""
        return only(model, lambda model: model)

    def loss(
        self, model: Model, state: None, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Array, None]]:
        """Classification and both pictures, of images distorted on the device."""
        clean, seen = distort(batch.images[..., 0], key)
        feature = encode(model.vit, seen)
        logits = self.scale * unit(feature) @ unit(model.classes, 0)
        own = relative_error(model.decoder(feature), shrink(clean), batch.weight)
        typical = relative_error(model.typical(feature), self.pictures[batch.label], batch.weight)
        named = smoothed_cross_entropy(logits, batch, self.smoothing)
        loss = named + self.own_weight * own + self.class_weight * typical
        return loss, (logits, state)

    def predict(self, model: Model, state: None, images: Array, query: Array) -> Prediction:
        """The nearest class direction."""
        return Prediction(self.scale * unit(model.vit(images)) @ unit(model.classes, 0))


def encode(vit: ViT, images: Ink) -> Array:
    """`vit(images)` without the scan, whose backward pass is a third slower on a CPU."""
    x = vit.tokens(vit.patches(jnp.repeat(images[..., None], 3, -1)))
    last = vit.config.depth - 1
    for i in range(last + 1):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], vit.blocks)
        x = block(x, None, 1 if i == last else None)
    return vit.norm(x)[:, 0]


def smoothed_cross_entropy(logits: Array, batch: Batch, smoothing: float) -> Float[Array, ""]:
    target = optax.smooth_labels(jax.nn.one_hot(batch.label, logits.shape[1]), smoothing)
    return weighted_mean(optax.softmax_cross_entropy(logits, target), batch.weight)


def relative_error(guess: Array, picture: Array, weight: Array) -> Float[Array, ""]:
    return weighted_mean(jnp.square(guess - picture).mean(1), weight) / VARIANCE


def shrink(images: Any) -> Any:
    """Images as rows of `PICTURE * PICTURE` means."""
    block = images.shape[1] // PICTURE
    parts = images.reshape(len(images), PICTURE, block, PICTURE, block)
    return parts.mean((2, 4)).reshape(len(images), -1)


def unit(x: Array, axis: int = -1) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-6)


# --- distortion, on the device, for one image; `distort` maps it over the batch -------------------


def distort(ink: Ink, key: PRNGKeyArray) -> tuple[Ink, Ink]:
    """The distorted pictures, and what the encoder gets of them (occluded, noisy)."""
    return jax.vmap(distort_one)(ink, jr.split(key, len(ink)))


def distort_one(ink: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Each picture has its own strength of warp and of paint, so that some are always easy."""
    keys = jr.split(key, 6)
    strength = jr.uniform(keys[5], (2,))
    warped = stroke(sample(ink, positions(keys[0], ink.shape[0], strength[0])), keys[1])
    clean = paint(warped, keys[2], jnp.maximum(0, 1.6 * strength[1] - 0.6))
    return clean, noise(occlude(clean, keys[3]), keys[4])


def positions(key: PRNGKeyArray, side: int, strength: Array) -> Array:
    """Where in the source each pixel comes from: an affine map and a smooth displacement."""
    turn, stretch, shift, bend = jr.split(key, 4)
    angle = jr.normal(turn) * 0.25 * strength
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    matrix = rotation @ (jnp.eye(2) * 1.12 + 0.15 * strength * jr.normal(stretch, (2, 2)))
    axis = jnp.arange(SIDE) - (SIDE - 1) / 2
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"))
    coarse = jr.normal(bend, (2, 5, 5)) * 1.8 * strength
    smooth = jax.image.resize(coarse, (2, SIDE, SIDE), "cubic")
    moved = jnp.tensordot(matrix, grid, 1) + 2 * strength * jr.normal(shift, (2, 1, 1)) + smooth
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
    kind, clouds = jr.split(key)
    choice, angle, length, phase = jr.uniform(kind, (4,))
    axis = jnp.linspace(-1, 1, SIDE)
    ramp = jnp.cos(6.3 * angle) * axis[:, None] + jnp.sin(6.3 * angle) * axis
    waves = 0.5 + 0.5 * jnp.sin(ramp * (3 + 25 * length) + 6.3 * phase)
    cloud = jax.image.resize(jr.uniform(clouds, (6, 6)), (SIDE, SIDE), "linear")
    options = jnp.stack([0.5 + ramp / 2.83, waves, cloud, jnp.zeros_like(ramp)])
    return options[(4 * choice).astype(int)]


def paint(ink: Array, key: PRNGKeyArray, strength: Array) -> Array:
    """Textured ink on textured paper, bright on dark or dark on bright."""
    paper_key, ink_key, levels = jr.split(key, 3)
    low, paper_range, contrast, ink_range, flip = jr.uniform(levels, (5,))
    low = 0.5 * strength * low
    paper = low + 0.4 * strength * paper_range * texture(paper_key)
    bright = low + (1 - low) * (1 - 0.6 * strength * contrast)
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
    return jnp.where((used < 0.25) & rows[:, None] & columns, grey, picture)


def noise(picture: Array, key: PRNGKeyArray) -> Array:
    strength, pixels = jr.split(key)
    sigma = jnp.maximum(0, jr.uniform(strength, minval=-0.15, maxval=0.1))
    return jnp.clip(picture + sigma * jr.normal(pixels, picture.shape), 0, 1)


# --- the run --------------------------------------------------------------------------------------


def read_glyphs(config: Config) -> tuple[TaskStream, NDArray]:
    """All classes as one task, and their mean pictures. Every 40th class is held back."""
    arrays = read_arrays(config.glyphs)
    if not {"images", "labels", "class_names"} <= set(arrays) or not len(arrays["labels"]):
        raise UserError(f"'{config.glyphs}' holds no glyphs: make it anew with make_glyphs.py.")
    labels = arrays["labels"]
    used = (labels % 40 != 0) & (labels % config.every == min(1, config.every - 1))
    kept, classes = np.unique(labels[used], return_inverse=True)
    images = arrays["images"][used]
    names = tuple(arrays["class_names"][kept].tolist())
    source = ArraySource(images, classes, "glyphs")
    every = tuple(range(len(names)))
    split = Split("glyphs", every, np.arange(len(images)))
    test = Split("glyphs", every, np.arange(256))
    stream = TaskStream("glyphs", source, source, names, (split,), (test,))
    return stream, mean_pictures(images, classes)


def mean_pictures(images: NDArray[np.uint8], labels: NDArray) -> NDArray:
    margin = (images.shape[1] - SIDE) // 2
    small = shrink(images[:, margin:-margin, margin:-margin].astype(np.float32) / 255)
    total = np.zeros((labels.max() + 1, small.shape[1]), np.float32)
    np.add.at(total, labels, small)
    return total / np.bincount(labels)[:, None]


def start(stream: TaskStream, key: PRNGKeyArray) -> ViT:
    """Random weights, but positions of sines and whitening patch filters: a ViT is slow to find
    either, and the second takes the mean grey out of inputs in [0, 1]."""
    vit = ViT(ARCHITECTURE, key=key)
    ink = jnp.asarray(stream.train[np.random.default_rng(0).choice(len(stream.train.labels), 2048)])
    _, seen = jax.jit(distort)(ink[..., 0].astype(jnp.float32) / 255, key)
    kernel, bias = whitening(np.asarray(seen), ARCHITECTURE)
    assert vit.position is not None
    position = vit.position.at[1:].set(0.5 * sines(ARCHITECTURE.grid, ARCHITECTURE.dim))
    where = lambda vit: (vit.patch_kernel, vit.patch_bias, vit.position)
    return eqx.tree_at(where, vit, (jnp.asarray(kernel), jnp.asarray(bias), position))


def whitening(images: NDArray, config: ViTConfig) -> tuple[NDArray, NDArray]:
    """Patch filters whose outputs are uncorrelated, of equal variance, and of zero mean."""
    side, grid = config.patch, config.grid
    cut = images.reshape(-1, grid, side, grid, side).transpose(0, 1, 3, 2, 4)
    patches = cut.reshape(-1, side * side)
    variance, axes = np.linalg.eigh(np.cov(patches.T))
    mix = np.linalg.qr(np.random.default_rng(1).normal(size=(config.dim, config.dim)))[0]
    mix = mix[: side * side] * np.sqrt(config.dim / side**2)
    filters = (axes / np.sqrt(variance + 0.01 * variance.max())) @ mix / 2
    kernel = np.repeat(filters.reshape(side, side, 1, -1) / 3, 3, axis=2)
    return kernel.astype(np.float32), (-patches.mean(0) @ filters).astype(np.float32)


def sines(grid: int, dim: int) -> NDArray[np.float32]:
    """Fixed position embedding (Vaswani et al., 2017) of rows and columns."""
    wave = np.arange(grid)[:, None] / 100 ** (np.arange(dim // 4) / (dim // 4))
    axis = np.concatenate([np.sin(wave), np.cos(wave)], 1)
    rows, columns = np.repeat(axis[:, None], grid, 1), np.repeat(axis[None], grid, 0)
    return np.concatenate([rows, columns], -1).reshape(grid * grid, dim).astype(np.float32)


def make_trainer(config: Config) -> tuple[Trainer, TrainState, TaskStream]:
    stream, pictures = read_glyphs(config)
    weights, run = jr.split(jr.key(config.seed))
    size = stream.train[np.arange(1)].shape[1]
    # `distort` crops and scales; the step gives it the image as it is.
    images = Images(size=size, resize=None, crop_area=(1, 1), flip=False)
    recipe = Recipe(config.optimizer, config.schedule, images)
    method, vit = GlyphPretraining(jnp.asarray(pictures)), start(stream, weights)
    trainer, state = Trainer.create(method, vit, stream, recipe, key=run)
    return trainer, state, stream


def export(trainer: Trainer, state: TrainState, out: Path) -> None:
    """The backbone alone, in half precision, with what is known of it."""
    leaves = vit_leaves(trainer.model(state).vit)
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in leaves.items()}
    write_npz(out, arrays | {METADATA: np.array(json.dumps(BUNDLED[NAME].metadata.known()))})


def report(step: int, steps: int, metrics: Metrics, began: float) -> None:
    loss, accuracy, minutes = metrics.loss, metrics.accuracy, (time.time() - began) / 60
    print(f"{step}/{steps} {minutes:.0f} min loss {loss:.2f} accuracy {accuracy:.2f}", flush=True)


def main(config: Config) -> None:
    trainer, state, stream = make_trainer(config)
    checkpoints, began = Checkpoints(config.run), time.time()
    restored = checkpoints.restore(state)
    if restored is not None:
        state = restored[0]
    first = int(state.step)
    steps = config.schedule.steps(len(stream.tasks[0].index))
    events = train_task(trainer, state, stream, 0, seed=config.seed, start=first)
    taken = (event for event in events if isinstance(event, StepDone))
    for step, done in enumerate(taken, first + 1):
        state = done.state
        if step % REPORT_EVERY == 0:
            report(step, steps, done.metrics, began)
        if step % config.save_every == 0 or step == steps:
            checkpoints.save(StreamPosition(0, step), state, {})
    export(trainer, state, config.out)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
