"""Settings of a run, as frozen dataclasses: the command line's flags and the library's arguments.

Nothing here imports JAX, so that the command line can answer `--help` at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from promptax.errors import UserError

Normalisation = Literal["unit", "symmetric", "imagenet", "clip"]
"""How pixels are scaled for a model: see `STATISTICS`."""
STATISTICS: Mapping[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel: a model is given `(pixel / 255 - mean) / std`."""


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; expected {expected}.")


def _require_area(name: str, area: tuple[float, float]) -> None:
    _require(0 < area[0] <= area[1] <= 1, name, area, "0 < smallest <= largest <= 1")


def _require_aspect(name: str, aspect: tuple[float, float]) -> None:
    _require(0 < aspect[0] <= aspect[1] < math.inf, name, aspect, "0 < smallest <= largest")


@dataclass(frozen=True)
class Optimizer:
    """The update rule; it sees trainable leaves only."""

    name: Annotated[Literal["adam", "adamw", "sgd"], tyro.conf.arg(name="optimizer")] = "adam"
    """Adam and AdamW use betas of 0.9 and 0.999 and an epsilon of 1e-8."""
    learning_rate: float = 0.03
    """For a batch of 256; scaled in proportion to the global batch."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the rate over the steps of each task."""
    warmup: float = 0.0
    """Share of a task's steps over which the rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of `adamw`."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    nesterov: bool = False
    """Nesterov's variant of `sgd`."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient of the trainable leaves; None: no clipping."""
    reset: bool = True
    """Start each task with a fresh optimizer state."""

    def __post_init__(self):
        finite = "a finite number of at least 0"
        _require(0 <= self.learning_rate < math.inf, "learning rate", self.learning_rate, finite)
        _require(0 <= self.warmup <= 1, "warm-up", self.warmup, "a share between 0 and 1")
        _require(0 <= self.weight_decay < math.inf, "weight decay", self.weight_decay, finite)
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "between 0 and 1")
        if self.clip_norm is not None:
            above = "a finite number above 0"
            _require(0 < self.clip_norm < math.inf, "clip norm", self.clip_norm, above)


@dataclass(frozen=True)
class Schedule:
    """How long and in which batches each task is trained."""

    epochs: int = 5
    """Passes over each task's training images."""
    batch_size: int = 128
    """Examples of a step, over all devices."""

    def __post_init__(self):
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch size", self.batch_size, "at least 1")

    def steps(self, examples: int) -> int:
        """Optimizer steps for a task of so many examples: every one is seen in every epoch."""
        return -(-examples * self.epochs // self.batch_size)


@dataclass(frozen=True)
class Augment:
    """Training augmentation beyond crop and flip; all of it is off by default."""

    operations: int = 0
    """Operations of RandAugment that each image goes through (N; published: 2)."""
    magnitude: float = 9.0
    """Strength of the operations of RandAugment, from 0 to 10 (M)."""
    brightness: float = 0.0
    """Colour jitter: largest change of the brightness, as a share of it."""
    contrast: float = 0.0
    """Colour jitter: largest change of the contrast, as a share of it."""
    saturation: float = 0.0
    """Colour jitter: largest change of the saturation, as a share of it."""
    hue: float = 0.0
    """Colour jitter: largest turn of the hue, as a share of the circle; at most 0.5."""
    erase: float = 0.0
    """Probability that a rectangle of an image is filled with noise."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the area that is erased."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest height / width of what is erased."""
    mixup: float = 0.0
    """Alpha of mixup within a batch (common: 0.8); 0: off."""
    cutmix: float = 0.0
    """Alpha of CutMix within a batch (published: 1); 0: off. With mixup: each for half."""
    mix_probability: float = 1.0
    """Probability that an image is mixed, where mixup or CutMix is on."""

    def __post_init__(self):
        finite, share = "a finite number of at least 0", "between 0 and 1"
        _require(self.operations >= 0, "RandAugment operations", self.operations, "at least 0")
        _require(0 <= self.magnitude <= 10, "magnitude", self.magnitude, "between 0 and 10")
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, value, finite)
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5")
        _require(0 <= self.erase <= 1, "erase", self.erase, share)
        _require(0 <= self.mix_probability <= 1, "mix probability", self.mix_probability, share)
        _require_area("erase area", self.erase_area)
        _require_aspect("erase aspect", self.erase_aspect)


@dataclass(frozen=True)
class Images:
    """From raw pixels to what the backbone takes; done on the device, inside the step."""

    size: int = 224
    """Side of the image that the backbone is given."""
    resize: int | None = 256
    """Side to which an image is resized before cropping, aspect ignored; None: `size`."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the area that a training crop covers; 1 1: no random crop."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    flip: bool = True
    """Mirror half of the training images."""
    value_range: Normalisation = "unit"
    """Scale pixels to [0, 1] (as published) or to [-1, 1] (as the weights were trained), or by mean
    and standard deviation of ImageNet or of OpenAI's CLIP."""
    augment: Augment = Augment()

    def __post_init__(self):
        _require(self.size >= 1, "image size", self.size, "at least 1")
        if self.resize is not None:
            _require(self.resize >= self.size, "resize", self.resize, f"at least {self.size}")
        _require_area("crop area", self.crop_area)
        _require_aspect("crop aspect", self.crop_aspect)


@dataclass(frozen=True)
class Protocol:
    """How accuracy is measured: always instance by instance, over the whole test set."""

    batch_size: int = 100
    """Images of an evaluation step; the accuracy does not depend on it."""
    classes: Literal["seen", "all"] = "seen"
    """Which classes compete: those of the tasks so far, or all of the stream."""
    task_incremental: bool = False
    """Report beside it the accuracy where the task of each image is known."""
    vote_group: int | None = None
    """Report beside it the published batch vote, over groups of so many test images."""
    every: int = 1
    """Measure after every so many tasks, and after the last."""

    def __post_init__(self):
        _require(self.every >= 1, "interval of evaluations", self.every, "at least 1")
        _require(self.batch_size >= 1, "evaluation batch size", self.batch_size, "at least 1")
        if self.vote_group is not None:
            _require(self.vote_group >= 1, "vote group", self.vote_group, "at least 1")
            divides = self.batch_size % self.vote_group == 0
            expected = f"a divisor of the evaluation batch size {self.batch_size}"
            _require(divides, "vote group", self.vote_group, expected)


@dataclass(frozen=True)
class Recipe:
    """How a method is trained and measured: all of a run but method, stream and weights."""

    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    images: Images = Images()
    protocol: Protocol = Protocol()
