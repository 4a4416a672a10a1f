"""Presets of the papers: their methods on the published benchmarks, as their authors ran them.

They take the archives that `promptax data prepare` has prepared, and the weights that
`promptax weights fetch` has fetched. `README.md` beside this file shows for each value which line
of the authors' code it is from, and what still differs; a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import replace

from promptax.core.settings import Augment, Evaluation, Images, Optimizer, Recipe, Schedule
from promptax.methods import (
    L2P,
    NCM,
    SLCA,
    SLDC,
    CODAPrompt,
    DualPrompt,
    HiDePrompt,
    RanPAC,
    SPrompts,
)
from promptax.methods.base import AbstractMethod
from promptax.methods.components.first_session import FirstSession
from promptax.methods.components.statistics import FeatureStatistics
from promptax.methods.components.task_identity import IdentityTraining
from promptax.runs.experiment import Experiment
from promptax.runs.inputs import Backbone, Data
from promptax.runs.presets.published import AUGREG_1K, AUGREG_21K, ORIG_21K
from promptax.training.optimizer import REFERENCE_BATCH

CIFAR = "split-cifar100"
IMAGENET_R = "split-imagenet-r"


def _rate(rate: float, batch_size: int) -> float:
    """The setting for a learning rate that authors use as it is at a batch size."""
    return rate * REFERENCE_BATCH / batch_size


L2P_IMAGES = Images(antialias=False)
"""TensorFlow's resizing, to squares of 256."""
TORCHVISION = Images(keep_aspect=True, crop_area=(0.08, 1.0), crop_redraws=9)
"""torchvision's `RandomResizedCrop` in training, `Resize(256)` and `CenterCrop` in testing."""
CIFAR_STANDARDISED = replace(
    TORCHVISION,
    interpolation="bicubic",
    normalisation="cifar100",
    augment=Augment(brightness=63 / 255),
)
"""CIFAR-100 as PyCIL and what descends from it prepare it."""
IMAGENET_STANDARDISED = replace(TORCHVISION, interpolation="bicubic", normalisation="imagenet")
"""ImageNet-R as the authors of SLCA and of SLDC prepare it."""
L2P_RECIPE = Recipe(Optimizer(), Schedule(epochs=5, batch_size=128), L2P_IMAGES, Evaluation())
"""The recipe of most experiments with L2P; the batch is that of 8 devices together."""


def _seed_1993(stream: str) -> Data:
    """The classes of a stream in the order of LAMDA-PILOT's usual seed."""
    return Data(stream, shuffle_classes=True, shuffle_like="pilot", class_seed=1993)


def _l2p(method: AbstractMethod, stream: str, recipe: Recipe = L2P_RECIPE) -> Experiment:
    """An experiment of L2P's and DualPrompt's authors."""
    return Experiment(method, Data(stream), Backbone(ORIG_21K), recipe)


L2P_PRESETS: Mapping[str, Experiment] = {
    "cifar100-l2p": _l2p(L2P(), CIFAR),
    # Nothing tells the learner where a micro-task begins, so its optimizer goes on. With 200 of
    # them, the whole test set is measured after every 20.
    "cifar100-gaussian-l2p": _l2p(
        L2P(),
        "gaussian-cifar100",
        replace(L2P_RECIPE, optimizer=Optimizer(reset=False), evaluation=Evaluation(every=20)),
    ),
    "five-datasets-l2p": _l2p(
        L2P(pool_size=20, pull=0.5, task_mask=True, transfer_prompts=True), "five-datasets"
    ),
    "core50-l2p": _l2p(
        L2P(prompt_length=5, train_backbone=True),
        "core50",
        replace(L2P_RECIPE, optimizer=Optimizer(name="sgd", momentum=0.9, nesterov=True)),
    ),
    "cifar100-dualprompt": _l2p(
        DualPrompt(vote_group=24),
        CIFAR,
        replace(L2P_RECIPE, schedule=Schedule(epochs=5, batch_size=192)),
    ),
    "imagenet-r-dualprompt": _l2p(
        DualPrompt(e_length=20),
        IMAGENET_R,
        replace(
            L2P_RECIPE,
            optimizer=Optimizer(learning_rate=0.005),
            schedule=Schedule(epochs=50, batch_size=192),
        ),
    ),
    "l2p-v1": _l2p(
        L2P.v1(),
        CIFAR,
        Recipe(
            schedule=Schedule(epochs=5, batch_size=16),
            images=replace(TORCHVISION, crop_area=(0.05, 1.0)),
        ),
    ),
}
"""By the name of the authors' config file; `l2p-v1` is the first release, as ported to PyTorch."""


def _coda(stream: str, images: Images, epochs: int) -> Experiment:
    """An experiment of CODA-Prompt's authors, who draw another order of classes in each run."""
    optimizer = Optimizer(
        learning_rate=_rate(0.001, batch_size=128), schedule="quarter_cosine", clip_norm=None
    )
    recipe = Recipe(optimizer, Schedule(epochs, batch_size=128), images)
    method = CODAPrompt(orthogonality=0.0)
    data = Data(stream, shuffle_classes=True, shuffle_like="coda")
    return Experiment(method, data, Backbone(AUGREG_1K), recipe)


def _slca(stream: str, images: Images, epochs: int, step_at: float) -> Experiment:
    """An experiment of SLCA's authors.

    Args:
        stream, images, epochs, step_at: As in `Experiment`.
    """
    optimizer = Optimizer(
        name="sgd",
        learning_rate=_rate(0.01, batch_size=128),
        schedule="step",
        step_at=step_at,
        weight_decay=5e-4,
        clip_norm=None,
    )
    recipe = Recipe(optimizer, Schedule(epochs, batch_size=128), images)
    return Experiment(SLCA(), _seed_1993(stream), Backbone(AUGREG_21K), recipe)


def _sldc(stream: str, images: Images, epochs: int) -> Experiment:
    """An experiment of SLDC's authors: beta_1-SLDC, without images of ImageNet.

    Args:
        stream, images, epochs: As in `Experiment`.
    """
    optimizer = Optimizer(
        name="adamw",
        learning_rate=_rate(1e-3, batch_size=16),
        schedule="cosine",
        schedule_interval="epoch",
        schedule_floor=1 / 3,
        weight_decay=3e-5,
        clip_norm=None,
    )
    recipe = Recipe(optimizer, Schedule(epochs, batch_size=16), images)
    method = SLDC(clamped=True, moved_ridge=0.01)
    return Experiment(method, _seed_1993(stream), Backbone(AUGREG_21K), recipe)


def _hide(
    stream: str,
    images: Images,
    optimizer: Optimizer,
    epochs: int,
    *,
    length: int,
    contrast: float,
) -> Experiment:
    """An experiment of HiDe-Prompt's authors, who train on 8 devices together.

    Their rates are for the images of one device, and their contrastive term is over these alone.

    Args:
        stream, images: As in `Experiment`.
        optimizer: The optimizer; its rate is set here.
        epochs: Passes over each task.
        length: Length of a prefix.
        contrast: Weight of the contrastive term.
    """
    device_batch = 24
    batch_size = 8 * device_batch
    scale = device_batch / REFERENCE_BATCH
    method = HiDePrompt(
        length=length,
        contrast=contrast,
        contrast_rows=device_batch,
        statistics=FeatureStatistics(class_statistics="centroids"),
        alignment=replace(HiDePrompt().alignment, align_decay=0.0, align_steps="earlier"),
        identity=IdentityTraining(
            identity_head="residual",
            identity_epochs=20,
            identity_rate=0.0005 * scale,
            identity_batch=batch_size,
            identity_align_samples=device_batch,
            identity_align_batch=device_batch,
            identity_align_rate=0.005 * scale,
        ),
    )
    optimizer = replace(optimizer, learning_rate=_rate(0.03 * scale, batch_size))
    recipe = Recipe(optimizer, Schedule(epochs, batch_size), images)
    return Experiment(method, Data(stream), Backbone(ORIG_21K), recipe)


def _one_pass(method: AbstractMethod, stream: str, images: Images, weights: str) -> Experiment:
    """An experiment of RanPAC's authors: one pass over images as they are in testing.

    Args:
        method, stream, images, weights: As in `Experiment`; augmentation is turned off here.
    """
    images = replace(images, interpolation="bicubic", crop_area=(1.0, 1.0), flip=False)
    recipe = Recipe(schedule=Schedule(epochs=1, batch_size=128), images=images)
    return Experiment(method, _seed_1993(stream), Backbone(weights), recipe)


def _ranpac(first_session: FirstSession, stream: str, images: Images, weights: str) -> Experiment:
    """An experiment of RanPAC's authors, whose first task is trained on augmented images.

    Args:
        first_session: What is trained on the first task.
        stream, images, weights: As in `Experiment`.
    """
    batch_size = 48
    optimizer = Optimizer(
        name="sgd",
        learning_rate=_rate(0.01, batch_size),
        schedule="cosine",
        schedule_interval="epoch",
        weight_decay=5e-4,
        clip_norm=None,
    )
    images = replace(images, interpolation="bicubic", crop_area=(0.05, 1.0))
    recipe = Recipe(optimizer, Schedule(epochs=20, batch_size=batch_size), images)
    method = RanPAC(first_session=first_session)
    return Experiment(method, _seed_1993(stream), Backbone(weights), recipe)


def _sprompts() -> Experiment:
    """The experiment of S-Prompts' authors on CORe50."""
    optimizer = Optimizer(
        name="sgd",
        learning_rate=_rate(0.01, batch_size=128),
        schedule="cosine",
        schedule_interval="epoch",
        weight_decay=2e-4,
        clip_norm=None,
    )
    images = replace(TORCHVISION, normalisation="imagenet")
    recipe = Recipe(optimizer, Schedule(epochs=20, batch_size=128), images)
    return Experiment(SPrompts(), Data("core50"), Backbone(AUGREG_1K), recipe)


PAPER_PRESETS: Mapping[str, Experiment] = {
    **L2P_PRESETS,
    "core50-sprompts": _sprompts(),
    "cifar100-coda": _coda(CIFAR, replace(TORCHVISION, resize=None), epochs=20),
    "imagenet-r-coda": _coda(IMAGENET_R, TORCHVISION, epochs=50),
    "cifar100-slca": _slca(CIFAR, CIFAR_STANDARDISED, epochs=20, step_at=18 / 20),
    "imagenet-r-slca": _slca(IMAGENET_R, IMAGENET_STANDARDISED, epochs=50, step_at=40 / 50),
    "cifar100-sldc": _sldc(CIFAR, CIFAR_STANDARDISED, epochs=5),
    "imagenet-r-sldc": _sldc(IMAGENET_R, IMAGENET_STANDARDISED, epochs=10),
    # Their scheduler is one epoch behind, so the rate falls after 31 epochs instead of 30.
    "cifar100-hide": _hide(
        CIFAR,
        CIFAR_STANDARDISED,
        Optimizer(schedule="step", step_at=31 / 50),
        epochs=50,
        length=5,
        contrast=0.1,
    ),
    "imagenet-r-hide": _hide(
        IMAGENET_R,
        replace(TORCHVISION, crop_area=(0.05, 1.0)),
        Optimizer(schedule="cosine", schedule_interval="epoch", schedule_floor=1e-5 / 0.0028125),
        epochs=150,
        length=20,
        contrast=0.5,
    ),
    "cifar100-ncm": _one_pass(NCM(), CIFAR, replace(TORCHVISION, resize=None), AUGREG_21K),
    "imagenet-r-ncm": _one_pass(NCM(), IMAGENET_R, TORCHVISION, AUGREG_1K),
    "cifar100-ranpac": _ranpac(
        FirstSession("adapter"), CIFAR, replace(TORCHVISION, resize=None), AUGREG_21K
    ),
    "imagenet-r-ranpac": _ranpac(FirstSession("ssf"), IMAGENET_R, TORCHVISION, AUGREG_1K),
}
"""By STREAM-METHOD, or the name of the authors' config file."""
