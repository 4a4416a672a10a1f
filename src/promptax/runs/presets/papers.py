"""Presets of the papers: ViT-B/16, pre-trained on ImageNet-21k, on the published benchmarks.

They take the archives that `promptax data prepare` has prepared, and the weights that you give
with `--weights`. Settings are those of the authors' last code; the vote group is the share of one
of their 8 devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from promptax.core.settings import Evaluation, Optimizer, Recipe, Schedule
from promptax.methods import (
    L2P,
    NCM,
    SLCA,
    CODAPrompt,
    DualPrompt,
    HiDePrompt,
    RanPAC,
    SPrompts,
)
from promptax.methods.base import AbstractMethod
from promptax.runs.experiment import Experiment
from promptax.runs.inputs import Backbone, Data

VIT_B16 = Backbone("ViT-B_16.npz")
"""The first release's ImageNet-21k checkpoint, under its published file name."""


@dataclass(frozen=True)
class Published:
    """The figures that a paper reports."""

    source: str
    average_accuracy: float
    """In percent."""
    forgetting: float | None
    """In percent."""

    def __str__(self) -> str:
        """As `promptax presets` prints it."""
        forgotten = "" if self.forgetting is None else f", forgetting {self.forgetting} %"
        return f"accuracy {self.average_accuracy} %{forgotten} ({self.source})"


L2P_PAPER = "L2P, CVPR 2022"
DUALPROMPT_PAPER = "DualPrompt, ECCV 2022"
FROM_MEMORY = f"{L2P_PAPER}; quoted from memory"
RANPAC_REPOSITORY = "RanPAC, NeurIPS 2023, by its repository"
PUBLISHED: Mapping[str, Published] = {
    "cifar100-l2p": Published(L2P_PAPER, 83.83, 7.63),
    "cifar100-gaussian-l2p": Published(FROM_MEMORY, 88.34, None),
    "five-datasets-l2p": Published(L2P_PAPER, 81.14, 4.64),
    "core50-l2p": Published(FROM_MEMORY, 78.33, None),
    "cifar100-dualprompt": Published(DUALPROMPT_PAPER, 86.51, 5.16),
    "imagenet-r-dualprompt": Published(DUALPROMPT_PAPER, 68.13, 4.68),
    "l2p-v1": Published("PyTorch port", 83.77, 6.63),
    "core50-sprompts": Published("S-Prompts, NeurIPS 2022; quoted from memory", 83.13, None),
    "cifar100-coda": Published("CODA-Prompt, in another library", 86.25, None),
    "imagenet-r-coda": Published("CODA-Prompt, in another library", 75.45, None),
    "cifar100-slca": Published("SLCA, ICCV 2023; quoted from memory", 91.53, None),
    "imagenet-r-slca": Published("SLCA, ICCV 2023; quoted from memory", 77.0, None),
    "cifar100-hide": Published("HiDe-Prompt, NeurIPS 2023; quoted from memory", 92.61, None),
    "imagenet-r-hide": Published("HiDe-Prompt, NeurIPS 2023; quoted from memory", 75.06, None),
    "cifar100-ncm": Published(RANPAC_REPOSITORY, 83.4, None),
    "imagenet-r-ncm": Published(RANPAC_REPOSITORY, 61.2, None),
    "cifar100-ranpac": Published(f"{RANPAC_REPOSITORY}, without its phase 1", 89.0, None),
    "imagenet-r-ranpac": Published(f"{RANPAC_REPOSITORY}, without its phase 1", 71.8, None),
}
"""Average accuracy and forgetting that the authors (or the port) report, by preset."""


def _paper(method: AbstractMethod, stream: str, batch_size: int = 128, **other: Any) -> Experiment:
    recipe = replace(Recipe(schedule=Schedule(epochs=5, batch_size=batch_size)), **other)
    return Experiment(method, Data(stream), VIT_B16, recipe)


# Nothing tells the learner where a micro-task begins, so its optimizer goes on. With 200 of them,
# the whole test set is measured after every 20.
_GAUSSIAN = _paper(
    L2P(), "gaussian-cifar100", optimizer=Optimizer(reset=False), evaluation=Evaluation(every=20)
)
_FIVE_DATASETS = _paper(
    L2P(pool_size=20, pull=0.5, task_mask=True, transfer_prompts=True), "five-datasets"
)
_CORE50 = _paper(
    L2P(prompt_length=5, train_backbone=True),
    "core50",
    optimizer=Optimizer(name="sgd", momentum=0.9, nesterov=True),
)
_IMAGENET_R = _paper(
    DualPrompt(e_length=20),
    "split-imagenet-r",
    optimizer=Optimizer(learning_rate=0.005),
    schedule=Schedule(epochs=50, batch_size=192),
)

# Settings of the authors' repositories. A rate is theirs times 256 / batch size, where they do not
# scale it; a course by epochs is one by steps here.
_SGD = Optimizer(name="sgd", learning_rate=0.02, weight_decay=5e-4, clip_norm=None)
_CODA = Optimizer(learning_rate=0.002, schedule="cosine", clip_norm=None)


def _other(
    method: AbstractMethod, stream: str, optimizer: Optimizer, epochs: int, batch_size: int = 128
) -> Experiment:
    schedule = Schedule(epochs, batch_size)
    return _paper(method, stream, optimizer=optimizer, schedule=schedule)


CIFAR = "split-cifar100"
IMAGENET_R = "split-imagenet-r"
OTHERS: Mapping[str, Experiment] = {
    "core50-sprompts": _other(
        SPrompts(),
        "core50",
        replace(_SGD, schedule="cosine", weight_decay=2e-4),
        10,
    ),
    "cifar100-coda": _other(CODAPrompt(), CIFAR, _CODA, 20),
    "imagenet-r-coda": _other(CODAPrompt(), IMAGENET_R, _CODA, 50),
    "cifar100-slca": _other(SLCA(), CIFAR, replace(_SGD, schedule="step", step_at=0.9), 20),
    "imagenet-r-slca": _other(SLCA(), IMAGENET_R, replace(_SGD, schedule="step", step_at=0.8), 50),
    "cifar100-hide": _other(HiDePrompt(), CIFAR, Optimizer(schedule="step", step_at=0.6), 50, 192),
    "imagenet-r-hide": _other(
        HiDePrompt(length=20, contrast=0.5), IMAGENET_R, Optimizer(schedule="cosine"), 150, 192
    ),
    "cifar100-ncm": _other(NCM(), CIFAR, Optimizer(), 1),
    "imagenet-r-ncm": _other(NCM(), IMAGENET_R, Optimizer(), 1),
    "cifar100-ranpac": _other(RanPAC(), CIFAR, Optimizer(), 1),
    "imagenet-r-ranpac": _other(RanPAC(), IMAGENET_R, Optimizer(), 1),
}

PAPER_PRESETS: Mapping[str, Experiment] = {
    "cifar100-l2p": _paper(L2P(), "split-cifar100"),
    "cifar100-gaussian-l2p": _GAUSSIAN,
    "five-datasets-l2p": _FIVE_DATASETS,
    "core50-l2p": _CORE50,
    "cifar100-dualprompt": _paper(DualPrompt(vote_group=24), "split-cifar100", 192),
    "imagenet-r-dualprompt": _IMAGENET_R,
    "l2p-v1": _paper(L2P.v1(), "split-cifar100"),
    **OTHERS,
}
"""Of L2P and DualPrompt by the name of the authors' config file; `l2p-v1` is the first release."""
