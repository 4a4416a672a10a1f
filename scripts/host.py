"""The command `host` of `scripts/benchmark.py`: what the host needs for a training step."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from loader import MILLISECONDS
from timing import TINY, Figures, show

from promptax import data, nn
from promptax.core.settings import Images, Optimizer, Recipe, Schedule
from promptax.methods.base import AbstractMethod, Prediction, only
from promptax.methods.components.losses import cross_entropy
from promptax.training.loop import StepDone, train_task
from promptax.training.trainer import Trainer

WARMUP = 20
"""Steps before the first one that counts: the first one compiles."""


class OnePixel(AbstractMethod):
    """A linear classifier on a single pixel: the device has next to nothing to do."""

    def init(self, backbone, stream, *, key):
        return {"head": nn.Linear(3, stream.num_classes, key=key)}, None

    def trainable(self, model, task):
        return only(model, lambda model: model["head"])

    def loss(self, model, state, batch, task, *, key):
        logits = model["head"](batch.raw[:, 0, 0].astype(jnp.float32) / 255)
        return cross_entropy(logits, batch, task.competing), (logits, state)

    def predict(self, model, state, images, query):
        return Prediction(model["head"](images[:, 0, 0]))


@dataclass(frozen=True)
class Host:
    """Time training steps in which the device has next to nothing to do: a batch is put together,
    sent, and its step started, and the losses of earlier steps are looked at.

    What this takes is an upper bound of what the host needs for a step of any method, since a
    device that is busy leaves the host free meanwhile. As long as the step of a method takes
    longer, the device does not wait for the host.
    """

    side: tuple[int, ...] = (32, 256)
    """Sides of the images in memory, in pixels."""
    batch_size: int = 128
    """Images of a batch."""
    batches: int = 20
    """Batches of an epoch."""
    epochs: int = 20
    """Passes over them."""
    json: Path | None = None
    """Where to write the figures."""

    def __call__(self) -> None:
        """Measure, and print the median and the range of each size."""
        rows: list[Figures] = []
        for side in self.side:
            show(self.measure(side), rows, self.json)

    def measure(self, side: int) -> Figures:
        """Time the steps of one task, with images of a size."""
        count = self.batches * self.batch_size
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        source = data.ArraySource(images, np.arange(count) % 2)
        stream = data.class_incremental(source, source, num_tasks=1)
        recipe = Recipe(
            Optimizer(),
            Schedule(self.epochs, self.batch_size),
            Images(TINY.image, resize=None, flip=False),
        )
        vit = nn.ViT(TINY, key=jr.key(0))
        trainer, state = Trainer.create(OnePixel(), vit, stream, recipe, key=jr.key(1))
        ends = []
        for event in train_task(trainer, state, stream, 0, seed=0):
            if isinstance(event, StepDone):
                ends.append(time.perf_counter())
        each = MILLISECONDS * np.diff(ends[WARMUP:])
        return {
            "side": side,
            "device": jax.devices()[0].device_kind,
            "ms_a_step": float(each.mean()),
            "median": statistics.median(each.tolist()),
            "slowest": float(each.max()),
        }
