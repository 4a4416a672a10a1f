"""Settings of a run, as frozen dataclasses: the command line's flags and the library's arguments.

The docstring of each field is its help text on the command line. Nothing here imports JAX, so that
the command line can answer `--help` at once.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from promptax.core.bounds import (
    FINITE,
    MOST_EPOCHS,
    MOST_IN_BATCH,
    SHARE,
)
from promptax.core.bounds import LARGEST as LARGEST
from promptax.core.bounds import MOST_SAMPLES as MOST_SAMPLES
from promptax.core.bounds import SMALLEST as SMALLEST
from promptax.core.bounds import require as require
from promptax.core.bounds import require_count as require_count
from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.image_settings import STATISTICS as STATISTICS
from promptax.core.image_settings import Augment as Augment
from promptax.core.image_settings import Images as Images
from promptax.core.image_settings import Interpolation as Interpolation
from promptax.core.image_settings import Normalisation as Normalisation

ClassMask = Literal["task", "seen", "none"]
"""The classes whose logits compete in the training loss: those of the task, those of all tasks so
far, or all of the stream."""


@dataclass(frozen=True)
class Optimizer:
    """The update rule of the trained parameters."""

    name: Annotated[Literal["adam", "adamw", "sgd"], tyro.conf.arg(name="optimizer")] = "adam"
    """The optimizer. Adam and AdamW use betas of 0.9 and 0.999 and an epsilon of 1e-8."""
    learning_rate: float = 0.03
    """Learning rate for a batch of 256; it is scaled in proportion to the global batch size."""
    schedule: Literal["constant", "cosine", "quarter_cosine", "step"] = "constant"
    """Schedule of the learning rate over each task. cosine: falls to `schedule_floor` along half a
    period; quarter_cosine: falls along 99 % of a quarter period, epoch by epoch, as in
    CODA-Prompt's code; step: falls to a tenth at `step_at`."""
    schedule_interval: Literal["step", "epoch"] = "step"
    """Whether the schedule changes the learning rate in every step, or between epochs only, as
    PyTorch's schedulers do. `quarter_cosine` always changes it between epochs."""
    step_at: float = 0.8
    """Share of a task's steps after which the schedule `step` reduces the learning rate."""
    schedule_floor: float = 0.0
    """Learning rate that the schedule `cosine` falls to, as a share of the full rate."""
    warmup: float = 0.0
    """Share of a task's steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Weight decay: decoupled in `adamw`, added to the gradient in `sgd`."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    nesterov: bool = False
    """Nesterov's variant of `sgd`."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient of the trained parameters; None: no clipping."""
    reset: bool = True
    """Start each task with a fresh optimizer state."""
    skip_nonfinite: int = 0
    """How many updates of a run may be skipped because the loss or gradient is not finite. One more
    stops the run."""

    def __post_init__(self):
        check_fields(self)
        # A rate that is finite but too large shows in the loss, and the run stops at that step.
        rate = self.learning_rate
        require(0 <= rate < math.inf, "learning rate", rate, "a finite number of at least 0")
        require(0 <= self.warmup <= 1, "warm-up", self.warmup, f"a share {SHARE}")
        require(0 <= self.step_at <= 1, "step at", self.step_at, f"a share {SHARE}")
        floor = self.schedule_floor
        require(0 <= floor <= 1, "schedule floor", floor, f"a share {SHARE}")
        require(0 <= self.weight_decay <= LARGEST, "weight decay", self.weight_decay, FINITE)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "between 0 and 1")
        if self.clip_norm is not None:
            above = f"a finite number above 0, from {SMALLEST:g} to {LARGEST:g}"
            require(SMALLEST <= self.clip_norm <= LARGEST, "clip norm", self.clip_norm, above)
        skip = self.skip_nonfinite
        require(skip >= 0, "number of updates to skip", skip, "at least 0")


@dataclass(frozen=True)
class Schedule:
    """How long each task is trained, and in batches of which size."""

    epochs: int = 5
    """Passes over each task's training images."""
    batch_size: int = 128
    """Examples in a training step, over all devices together."""
    cache_queries: bool = True
    """Compute the outputs of frozen weights for a task's training images (queries of prompts,
    features of a frozen backbone) once instead of in every epoch, if images are not augmented. They
    are kept in the memory of the host."""

    def __post_init__(self):
        check_fields(self)
        require_count("epochs", self.epochs, MOST_EPOCHS)
        require_count("batch size", self.batch_size, MOST_IN_BATCH)

    def steps(self, examples: int) -> int:
        """Number of optimizer steps for a task of so many examples.

        Epochs follow each other without a gap, so only the last batch may be partial.
        """
        full_batches, rest = divmod(examples * self.epochs, self.batch_size)
        return full_batches + (1 if rest else 0)


@dataclass(frozen=True)
class Replay:
    """A replay buffer: training images of earlier tasks that are trained on again (rehearsal)."""

    buffer_size: int = 0
    """Number of images in the buffer: in all, or of each class with `buffer_per_class`. 0: no
    buffer."""
    buffer_per_class: bool = False
    """Let `buffer_size` be the number of images of each class."""
    buffer_kind: Literal["reservoir", "ring", "balanced"] = "reservoir"
    """Which images are kept. reservoir: every image seen so far with the same probability; ring:
    the newest of each class; balanced: equally many of each class, each image of it with the same
    probability."""
    buffer_epochs: Literal["auto", "first", "every"] = "auto"
    """Epochs of a task in which its images are offered to the buffer. first: each image once;
    every: each image again in every epoch, so that the logits stored with it come from a model that
    has been trained; auto: every epoch if logits are stored (DER, DER++), else the first."""
    replay_batch: int = 32
    """Number of images drawn from the buffer in each step."""
    review_epochs: int = 0
    """Passes over the buffer after each task, in the same kind of training steps (Mai et al.,
    2020)."""

    def __post_init__(self):
        check_fields(self)
        require(self.buffer_size >= 0, "buffer size", self.buffer_size, "at least 0")
        require(self.replay_batch >= 1, "replay batch", self.replay_batch, "at least 1")
        if self.buffer_size:
            most = MOST_EPOCHS
            expected = f"at least 0 and at most {most}"
        else:
            most = 0
            expected = "0 without a buffer"
        require(0 <= self.review_epochs <= most, "review epochs", self.review_epochs, expected)

    def capacity(self, classes: int) -> int:
        """Number of images in the whole buffer, for a stream of so many classes."""
        return self.buffer_size * (classes if self.buffer_per_class else 1)


@dataclass(frozen=True)
class Evaluation:
    """How accuracy is measured: on the whole test set, each image on its own."""

    batch_size: int = 100
    """Number of images in an evaluation step; the accuracy does not depend on it."""
    classes: Literal["seen", "all"] = "seen"
    """Classes among which a prediction is made: those of the tasks so far, or all of the stream."""
    task_incremental: bool = False
    """Also report the accuracy when the task of each image is given."""
    vote_group: int | None = None
    """Also report the accuracy under the published batch vote, over groups of this many test
    images."""
    every: int = 1
    """Measure each time that this many tasks have been learned, and after the last task."""

    def __post_init__(self):
        check_fields(self)
        require(self.every >= 1, "interval of evaluations", self.every, "at least 1")
        require_count("evaluation batch size", self.batch_size, MOST_IN_BATCH)
        if self.vote_group is not None:
            require(self.vote_group >= 1, "vote group", self.vote_group, "at least 1")
            divides = self.batch_size % self.vote_group == 0
            expected = f"a divisor of the evaluation batch size {self.batch_size}"
            require(divides, "vote group", self.vote_group, expected)


@dataclass(frozen=True)
class Saving:
    """Which checkpoints a run writes and keeps; its results do not depend on this."""

    checkpoint_every: int | None = None
    """Number of steps between two checkpoints within a task; there is one after every task, too."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; the last two at the end of a task always are."""
    keep_tasks: bool = False
    """Keep the checkpoints at the end of all tasks, too."""

    def __post_init__(self):
        check_fields(self)
        every = self.checkpoint_every
        keep = self.keep_checkpoints
        if every is not None:
            require(every >= 1, "interval of checkpoints", every, "at least 1 step")
        require(keep >= 1, "number of checkpoints to keep", keep, "at least 1")


@dataclass(frozen=True)
class Recipe:
    """How a method is trained and measured: all settings but method, stream and weights."""

    optimizer: Optimizer = Optimizer()
    """The update rule and its learning rate."""
    schedule: Schedule = Schedule()
    """Epochs and batch size."""
    images: Images = Images()
    """Preparation of images."""
    evaluation: Evaluation = Evaluation()
    """How accuracy is measured."""
    class_mask: ClassMask = "task"
    """The classes that compete in the training loss. Those of replayed images always do."""

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class MeshShape:
    """The mesh of devices that a run uses; the results of the run do not depend on it."""

    data: int | None = None
    """Number of copies of the model. If None: as many as there are devices for."""
    model: int = 1
    """Number of devices over which each copy splits the blocks of a ViT, for models too large for
    one device. Batches are split over all devices of all copies."""

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Distributed:
    """Training in several processes together, each on devices of its own."""

    on: Annotated[bool, tyro.conf.arg(name="distributed", prefix_name=False)] = False
    """Join the other processes of a job that Slurm, GKE, Cloud TPU or Open MPI has started. The run
    folder and the data must be on a disk that all of them can read."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if none of these systems provides it. The next two flags are then
    needed as well."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    timeout: int = 120
    """Seconds to wait for a process that does not join or no longer responds; then the run ends."""

    def __post_init__(self):
        check_fields(self)
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
                "Distributed(coordinator=..., processes=..., process=...) go together: give all "
                "three, or only Distributed(on=True) to have them found."
            )

    @property
    def wanted(self) -> bool:
        """Whether this process is to join others."""
        return self.on or self.coordinator is not None


@dataclass(frozen=True)
class Machine:
    """The devices and processes of a run; its results do not depend on them."""

    mesh: MeshShape = MeshShape()
    distributed: Distributed = Distributed()
    compile_cache: bool = True
    """Keep compiled steps in the user's cache folder (or in JAX_COMPILATION_CACHE_DIR), so that the
    next run with the same shapes starts sooner."""

    def __post_init__(self):
        check_fields(self)
