"""Settings of a run, as frozen dataclasses: the command line's flags and the library's arguments.

Nothing here imports JAX, so that the command line can answer `--help` at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from promptax.core.errors import UserError

Normalisation = Literal["unit", "symmetric", "imagenet", "clip"]
"""How pixels are scaled for a model: see `STATISTICS`."""
STATISTICS: Mapping[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel: a model is given `(pixel / 255 - mean) / std`."""


LARGEST = 1e30
"""Of factors and strengths: float32 ends at 3e38, and products of them overflow before."""
SMALLEST = 1e-30
"""Of what is divided by, or is nothing but zero in float32."""
_FINITE = f"a finite number of at least 0 and at most {LARGEST:g}"


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise `UserError` that names a setting, its value and what was expected, unless it holds."""
    if not holds:
        raise UserError(f"{name} is {value}; expected {expected}.")


def require_count(name: str, count: int, most: int) -> None:
    """Raise `UserError` unless a count is from 1 to `most`."""
    require(1 <= count <= most, name, count, f"at least 1 and at most {most}")


def _require_area(name: str, area: tuple[float, float]) -> None:
    require(0 < area[0] <= area[1] <= 1, name, area, "0 < smallest <= largest <= 1")


def _require_aspect(name: str, aspect: tuple[float, float]) -> None:
    within = "0 < smallest <= largest, from 0.001 to 1000"
    require(0.001 <= aspect[0] <= aspect[1] <= 1000, name, aspect, within)


@dataclass(frozen=True)
class Optimizer:
    """The update rule; it sees trainable leaves only."""

    name: Annotated[Literal["adam", "adamw", "sgd"], tyro.conf.arg(name="optimizer")] = "adam"
    """Adam and AdamW use betas of 0.9 and 0.999 and an epsilon of 1e-8."""
    learning_rate: float = 0.03
    """For a batch of 256; scaled in proportion to the global batch."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Course of the rate over the steps of each task; `step` falls to a tenth at `step_at`."""
    step_at: float = 0.8
    """Share of a task's steps after which the rate of `step` falls."""
    warmup: float = 0.0
    """Share of a task's steps over which the rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Of `adamw`, decoupled; of `sgd`, added to the gradient."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    nesterov: bool = False
    """Nesterov's variant of `sgd`."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient of the trainable leaves; None: no clipping."""
    reset: bool = True
    """Start each task with a fresh optimizer state."""
    skip_nonfinite: int = 0
    """Leave out at most so many updates of a run whose loss or gradient is not finite; the next
    one stops it."""

    def __post_init__(self):
        rate, decay = self.learning_rate, self.weight_decay
        # One that is finite and yet too large is found by the loss, and said with the step.
        finite = "a finite number of at least 0"
        require(0 <= rate < math.inf, "learning rate", rate, finite)
        for name, part in (("warm-up", self.warmup), ("step at", self.step_at)):
            require(0 <= part <= 1, name, part, "a share between 0 and 1")
        require(0 <= decay <= LARGEST, "weight decay", decay, _FINITE)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "between 0 and 1")
        if self.clip_norm is not None:
            above = f"a finite number above 0, from {SMALLEST:g} to {LARGEST:g}"
            require(SMALLEST <= self.clip_norm <= LARGEST, "clip norm", self.clip_norm, above)
        skip = self.skip_nonfinite
        require(skip >= 0, "number of updates to skip", skip, "at least 0")


@dataclass(frozen=True)
class Schedule:
    """How long and in which batches each task is trained."""

    epochs: int = 5
    """Passes over each task's training images."""
    batch_size: int = 128
    """Examples of a step, over all devices."""
    cache_queries: bool = True
    """Compute what frozen weights say of a task's training images (the queries of prompts, the
    features of a frozen backbone) once rather than in every epoch, where images are not augmented;
    kept in the memory of the host."""

    def __post_init__(self):
        require_count("epochs", self.epochs, 10**6)
        require_count("batch size", self.batch_size, 2**20)

    def steps(self, examples: int) -> int:
        """Optimizer steps for a task of so many examples: every one is seen in every epoch."""
        return -(-examples * self.epochs // self.batch_size)


@dataclass(frozen=True)
class Replay:
    """Training images that are kept on the device and trained on again (rehearsal)."""

    buffer_size: int = 0
    """Images kept: in all, or of each class; 0: none."""
    buffer_per_class: bool = False
    """Let the size be that of each class."""
    buffer_kind: Literal["reservoir", "ring", "balanced"] = "reservoir"
    """What is kept: each image with the same probability, the newest of each class, or of each
    class each image with the same probability."""
    replay_batch: int = 32
    """Images drawn from the buffer in each step."""
    review_epochs: int = 0
    """Passes over the buffer after each task, by steps like those before (Mai et al., 2020)."""

    def __post_init__(self):
        require(self.buffer_size >= 0, "buffer size", self.buffer_size, "at least 0")
        require(self.replay_batch >= 1, "replay batch", self.replay_batch, "at least 1")
        most = 10**6 if self.buffer_size else 0
        expected = f"at least 0 and at most {most}" if most else "0 without a buffer"
        require(0 <= self.review_epochs <= most, "review epochs", self.review_epochs, expected)

    def capacity(self, classes: int) -> int:
        """Images kept in all, where a stream has so many classes."""
        return self.buffer_size * (classes if self.buffer_per_class else 1)


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
        share, few = "between 0 and 1", "at least 0 and at most 100"
        require(0 <= self.operations <= 100, "RandAugment operations", self.operations, few)
        require(0 <= self.magnitude <= 10, "magnitude", self.magnitude, "between 0 and 10")
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value <= LARGEST, name, value, _FINITE)
        require(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5")
        require(0 <= self.erase <= 1, "erase", self.erase, share)
        require(0 <= self.mix_probability <= 1, "mix probability", self.mix_probability, share)
        _require_area("erase area", self.erase_area)
        _require_aspect("erase aspect", self.erase_aspect)

    @property
    def on(self) -> bool:
        """Whether any of it changes an image."""
        jitter = (self.brightness, self.contrast, self.saturation, self.hue)
        return any((self.operations, *jitter, self.erase, self.mixup, self.cutmix))


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
        require_count("image size", self.size, 4096)
        if self.resize is not None:
            within = f"at least {self.size} and at most 8192"
            require(self.size <= self.resize <= 8192, "resize", self.resize, within)
        _require_area("crop area", self.crop_area)
        _require_aspect("crop aspect", self.crop_aspect)

    @property
    def fixed(self) -> bool:
        """Whether an image is the same each time that it is trained on, and as evaluated."""
        return self.crop_area == (1.0, 1.0) and not self.flip and not self.augment.on

    def for_evaluation(self) -> "Images":
        """The same preparation of test images, with all that concerns training at its default."""
        return Images(size=self.size, resize=self.resize, value_range=self.value_range)


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
        require(self.every >= 1, "interval of evaluations", self.every, "at least 1")
        require_count("evaluation batch size", self.batch_size, 2**20)
        if self.vote_group is not None:
            require(self.vote_group >= 1, "vote group", self.vote_group, "at least 1")
            divides = self.batch_size % self.vote_group == 0
            expected = f"a divisor of the evaluation batch size {self.batch_size}"
            require(divides, "vote group", self.vote_group, expected)


@dataclass(frozen=True)
class Saving:
    """Which checkpoints a run writes and keeps; it has no influence on the numbers."""

    checkpoint_every: int | None = None
    """Write a checkpoint every so many steps, besides the one after every task."""
    keep_checkpoints: int = 2
    """Keep so many of the newest checkpoints."""
    keep_tasks: bool = False
    """Keep the checkpoint after every task, too."""

    def __post_init__(self):
        every, keep = self.checkpoint_every, self.keep_checkpoints
        if every is not None:
            require(every >= 1, "interval of checkpoints", every, "at least 1 step")
        require(keep >= 1, "number of checkpoints to keep", keep, "at least 1")


@dataclass(frozen=True)
class Recipe:
    """How a method is trained and measured: all of a run but method, stream and weights."""

    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    images: Images = Images()
    protocol: Protocol = Protocol()


@dataclass(frozen=True)
class MeshShape:
    """Which devices a run uses; its numbers do not depend on it."""

    data: int | None = None
    """Copies of the model; as many as there are devices for, if None."""
    model: int = 1
    """Devices that the blocks of a ViT are split over, in each copy: for a model that is too large
    for one. Batches are split over all devices of all copies."""


@dataclass(frozen=True)
class Distributed:
    """Several processes that train as one, each on devices of its own."""

    on: Annotated[bool, tyro.conf.arg(name="distributed", prefix_name=False)] = False
    """Be one of the processes of a job, as Slurm, GKE, Cloud TPU or Open MPI started it; the run
    folder and the data must be where all of them see them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing else says it; needs the next two as well."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """The number of this one, from 0."""
    timeout: int = 120
    """Seconds after which a process that does not come, or no longer answers, ends the run."""

    def __post_init__(self):
        require(self.timeout >= 1, "distributed timeout", self.timeout, "at least 1 second")
        if self.coordinator is not None and self.processes is not None and self.process is not None:
            host, _, port = self.coordinator.rpartition(":")
            named = bool(host) and port.isdecimal() and 0 < int(port) < 2**16
            require(named, "coordinator", self.coordinator, "HOST:PORT")
            require(self.processes >= 1, "number of processes", self.processes, "at least 1")
            below = f"a number from 0 to {self.processes - 1}"
            require(0 <= self.process < self.processes, "process", self.process, below)
        elif (self.coordinator, self.processes, self.process) != (None, None, None):
            raise UserError(
                "--distributed.coordinator, --distributed.processes and --distributed.process go "
                "together: give all three, or only --distributed to find them."
            )

    @property
    def wanted(self) -> bool:
        """Whether there are other processes."""
        return self.on or self.coordinator is not None


@dataclass(frozen=True)
class Machine:
    """Where a run computes; its numbers do not depend on it."""

    mesh: MeshShape = MeshShape()
    distributed: Distributed = Distributed()
    compile_cache: bool = True
    """Keep compiled steps in the user's cache folder (or where JAX_COMPILATION_CACHE_DIR says), so
    that the next run with the same shapes starts sooner."""
