"""Accuracies that authors report, each with what it takes to compare another one with it.

Every figure was read where `source` says. What is only known from hearsay is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Benchmark = Literal["Split CIFAR-100", "Split ImageNet-R", "5-datasets", "CORe50"]
ORIG_21K = "vit_base_patch16_224.orig_in21k"
"""The first release of ViT-B/16, pre-trained on ImageNet-21k (`ViT-B_16.npz`)."""
AUGREG_21K = "vit_base_patch16_224.augreg_in21k"
"""ViT-B/16 of "How to train your ViT?", pre-trained on ImageNet-21k."""
AUGREG_1K = "vit_base_patch16_224.augreg_in21k_ft_in1k"
"""The same, fine-tuned on ImageNet-1k: what timm called `vit_base_patch16_224` before 0.9."""


@dataclass(frozen=True)
class Published:
    """An accuracy that somebody reports."""

    method: str
    benchmark: Benchmark
    accuracy: float
    """In percent."""
    forgetting: float | None
    """In percent; None: not reported, or by another definition than ours."""
    metric: Literal["mean of tasks", "all images"]
    """After the last task: the mean of the tasks' accuracies, or the accuracy on all test images
    alike. Nothing here is averaged over stages."""
    weights: str
    """The checkpoint, by timm's tag."""
    split: str
    """Which images are for training and which for testing, where there is a choice."""
    order: str
    """The order of the classes or domains, and the number of runs."""
    source: str
    """Where the figure was read."""
    preset: str | None = None
    """The preset that has the settings behind it."""


L2P_PORT = "JH-LEE-KR/l2p-pytorch, README.md:{}"
DUALPROMPT_PORT = "JH-LEE-KR/dualprompt-pytorch, README.md:{}"
PAPER_BY_PORT = "the paper, as quoted by "
RERUN_BY_PORT = "the authors' code, run by the author of the port: "
L2P_ISSUE_6 = "the paper, as quoted in google-research/l2p, issue 6"
L2P_ISSUE_32 = "google-research/l2p, issue 32"
SPROMPTS_TABLE = "iamwangyabin/S-Prompts, results2.png (Table 2 of the paper)"
NULL_SPACE_TABLE = "Visual Prompt Tuning in Null Space (NeurIPS 2024), Table 2"
SLCA_FIGURE = "GengDavid/SLCA, slca_performance.jpg"
RANPAC_TABLE = "RanPAC/RanPAC, paper_tables/Table_data_main_{}.csv:{}"
HIDE_TABLE = "Is Parameter Isolation Better? (arXiv 2601.20894), main table"

STANDARD = "the standard split"
TFDS = "80 % of the TFDS split `test` in its order"
CODA_LISTS = "CODA-Prompt's lists"
SLCA_FOLDERS = "SLCA's folders, which are not published with the code"
PILOT_FOLDERS = "the folders of Zhou et al. (PILOT)"
SESSIONS = "8 sessions to train on, 3 to test on"

ASCENDING = "ascending, by the authors' code"
FIXED = "sets in the order of the authors' code"
IN_ORDER = "sessions in order"
NUMPY_1993 = "of numpy's seed 1993, one run"
NUMPY_3_SEEDS = "of numpy's seeds 1993, 1996 and 1997"
PYTHON_SEEDS = "of Python's seeds from 0"


def _l2p_and_dualprompt(
    method: str,
    benchmark: Benchmark,
    figures: tuple[float, float],
    source: str,
    *,
    split: str = STANDARD,
    order: str = ASCENDING,
    preset: str | None = None,
) -> Published:
    """A figure of L2P or DualPrompt: the authors' weights and metric.

    Args:
        method, benchmark, source, split, order, preset: As in `Published`.
        figures: Accuracy and forgetting.
    """
    return Published(
        method,
        benchmark,
        accuracy=figures[0],
        forgetting=figures[1],
        metric="mean of tasks",
        weights=ORIG_21K,
        split=split,
        order=order,
        source=source,
        preset=preset,
    )


def _ranpac(
    method: str,
    benchmark: Benchmark,
    accuracy: float,
    line: int,
    preset: str | None = None,
) -> Published:
    """A figure of RanPAC's tables: one run, whose weights depend on the benchmark.

    Args:
        method, benchmark, accuracy, preset: As in `Published`.
        line: The line of the authors' table.
    """
    cifar = benchmark == "Split CIFAR-100"
    table = "cifar224" if cifar else "imagenetr"
    return Published(
        method,
        benchmark,
        accuracy=accuracy,
        forgetting=None,
        metric="mean of tasks",
        weights=AUGREG_21K if cifar else AUGREG_1K,
        split=STANDARD if cifar else PILOT_FOLDERS,
        order=NUMPY_1993,
        source=RANPAC_TABLE.format(table, line),
        preset=preset,
    )


FIGURES: tuple[Published, ...] = (
    _l2p_and_dualprompt(
        "L2P",
        "Split CIFAR-100",
        (83.83, 7.63),
        PAPER_BY_PORT + L2P_PORT.format(113),
        preset="cifar100-l2p",
    ),
    _l2p_and_dualprompt(
        "L2P", "Split CIFAR-100", (82.59, 7.88), RERUN_BY_PORT + L2P_PORT.format(112)
    ),
    _l2p_and_dualprompt(
        "L2P, first release",
        "Split CIFAR-100",
        (83.77, 6.63),
        L2P_PORT.format(111),
        preset="l2p-v1",
    ),
    _l2p_and_dualprompt(
        "L2P with a buffer of 50 a class", "Split CIFAR-100", (86.31, 5.83), L2P_ISSUE_6
    ),
    _l2p_and_dualprompt(
        "L2P",
        "5-datasets",
        (81.14, 4.64),
        PAPER_BY_PORT + L2P_PORT.format(120),
        order=FIXED,
        preset="five-datasets-l2p",
    ),
    _l2p_and_dualprompt(
        "L2P",
        "5-datasets",
        (79.68, 3.71),
        RERUN_BY_PORT + L2P_PORT.format(119),
        order=FIXED,
    ),
    _l2p_and_dualprompt(
        "L2P, first release", "5-datasets", (80.22, 3.81), L2P_PORT.format(118), order=FIXED
    ),
    Published(
        "L2P",
        "CORe50",
        accuracy=78.33,
        forgetting=None,
        metric="all images",
        weights=ORIG_21K,
        split=SESSIONS,
        order=IN_ORDER,
        source=f"the paper, as quoted by {SPROMPTS_TABLE}",
        preset="core50-l2p",
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "Split CIFAR-100",
        (86.51, 5.16),
        PAPER_BY_PORT + DUALPROMPT_PORT.format(109),
        preset="cifar100-dualprompt",
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "Split CIFAR-100",
        (85.59, 5.03),
        RERUN_BY_PORT + DUALPROMPT_PORT.format(108),
    ),
    _l2p_and_dualprompt(
        "DualPrompt, port", "Split CIFAR-100", (86.13, 5.17), DUALPROMPT_PORT.format(107)
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "Split ImageNet-R",
        (68.13, 4.68),
        PAPER_BY_PORT + DUALPROMPT_PORT.format(116),
        split=TFDS,
        preset="imagenet-r-dualprompt",
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "Split ImageNet-R",
        (67.55, 5.06),
        RERUN_BY_PORT + DUALPROMPT_PORT.format(115),
        split=TFDS,
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "5-datasets",
        (88.08, 2.21),
        f"the paper, as quoted in {L2P_ISSUE_32}",
        order=FIXED,
    ),
    _l2p_and_dualprompt(
        "DualPrompt",
        "5-datasets",
        (75.50, 14.95),
        f"the authors' code, run by a user: {L2P_ISSUE_32}",
        order=FIXED,
    ),
    Published(
        "S-Prompts (S-iPrompts)",
        "CORe50",
        accuracy=83.13,
        forgetting=None,
        metric="all images",
        weights=AUGREG_1K,
        split=SESSIONS,
        order=IN_ORDER,
        source=SPROMPTS_TABLE,
        preset="core50-sprompts",
    ),
    Published(
        "CODA-Prompt",
        "Split CIFAR-100",
        accuracy=86.25,
        forgetting=None,
        metric="mean of tasks",
        weights=AUGREG_1K,
        split=STANDARD,
        order=PYTHON_SEEDS,
        source=NULL_SPACE_TABLE,
        preset="cifar100-coda",
    ),
    Published(
        "CODA-Prompt",
        "Split ImageNet-R",
        accuracy=75.45,
        forgetting=None,
        metric="mean of tasks",
        weights=AUGREG_1K,
        split=CODA_LISTS,
        order=PYTHON_SEEDS,
        source=NULL_SPACE_TABLE,
        preset="imagenet-r-coda",
    ),
    Published(
        "SLCA",
        "Split CIFAR-100",
        accuracy=91.53,
        forgetting=None,
        metric="all images",
        weights=AUGREG_21K,
        split=STANDARD,
        order=NUMPY_3_SEEDS,
        source=SLCA_FIGURE,
        preset="cifar100-slca",
    ),
    Published(
        "SLCA",
        "Split ImageNet-R",
        accuracy=77.00,
        forgetting=None,
        metric="all images",
        weights=AUGREG_21K,
        split=SLCA_FOLDERS,
        order=NUMPY_3_SEEDS,
        source=SLCA_FIGURE,
        preset="imagenet-r-slca",
    ),
    Published(
        "HiDe-Prompt",
        "Split CIFAR-100",
        accuracy=92.61,
        forgetting=1.50,
        metric="mean of tasks",
        weights=ORIG_21K,
        split=STANDARD,
        order=ASCENDING,
        source=HIDE_TABLE,
        preset="cifar100-hide",
    ),
    _ranpac("nearest class mean", "Split CIFAR-100", 83.4, line=8, preset="cifar100-ncm"),
    _ranpac("nearest class mean", "Split ImageNet-R", 61.2, line=8, preset="imagenet-r-ncm"),
    _ranpac("RanPAC without its phase 1", "Split CIFAR-100", 89.0, line=5),
    _ranpac("RanPAC without its phase 1", "Split ImageNet-R", 71.8, line=5),
    _ranpac("RanPAC", "Split CIFAR-100", 92.2, line=3, preset="cifar100-ranpac"),
    _ranpac("RanPAC", "Split ImageNet-R", 77.9, line=3, preset="imagenet-r-ranpac"),
)
PUBLISHED: Mapping[str, Published] = {
    figure.preset: figure for figure in FIGURES if figure.preset is not None
}
"""By preset. Where nothing was found, there is no entry."""
