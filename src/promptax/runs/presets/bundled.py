"""Presets for what comes with the package, tuned by `scripts/tune.py`."""

import dataclasses
from collections.abc import Mapping

from promptax.core.settings import Evaluation, Images, Optimizer, Recipe, Schedule
from promptax.methods import (
    DERPP,
    ER,
    EWC,
    L2P,
    NCM,
    SLCA,
    SLDC,
    Alignment,
    CODAPrompt,
    DualPrompt,
    Finetune,
    HiDePrompt,
    LinearProbe,
    LwF,
    RanPAC,
    SPrompts,
)
from promptax.methods.base import AbstractMethod
from promptax.methods.registry import method_name
from promptax.runs.experiment import Experiment
from promptax.runs.inputs import Data

FASHION = Images(size=32, resize=None, crop_area=(1.0, 1.0))
"""Small grey images as they are; half of the training images mirrored."""
GLYPHS = dataclasses.replace(FASHION, flip=False)
"""Small grey images as they are, never mirrored: a mirrored letter is not the same letter."""


def bundled_recipe(
    images: Images, learning_rate: float, epochs: int = 3, *, every: int = 1
) -> Recipe:
    """Adam at a constant rate, in batches of 32.

    Args:
        images: How images are prepared.
        learning_rate: For a batch of 256.
        epochs: Passes over each task.
        every: Measure after every so many tasks, and after the last.
    """
    return Recipe(
        optimizer=Optimizer(learning_rate=learning_rate),
        schedule=Schedule(epochs=epochs, batch_size=32),
        images=images,
        evaluation=Evaluation(every=every),
    )


def slotted_l2p(tasks: int, *, layer: int, top_k: int, length: int, pull: float) -> L2P:
    """L2P in which each task trains `top_k` prompts of its own, as on 5-datasets.

    Without slots, every task would overwrite the few prompts that all images of the bundled sets
    choose; at block 0 they disturb a small ViT more than they help.
    """
    return L2P(
        pool_size=top_k * tasks,
        top_k=top_k,
        prompt_length=length,
        layers=(layer,),
        readout="token",
        pull=pull,
        vote_group=None,
        task_mask=True,
        transfer_prompts=True,
    )


def _aligned(rate: float) -> Alignment:
    """SLDC's alignment at another learning rate."""
    return dataclasses.replace(SLDC().alignment, align_rate=rate)


Tuned = tuple[tuple[AbstractMethod, float], ...]
"""Methods and their learning rates: the best of eight trials each, on a validation set."""

FASHION_MNIST: Tuned = (
    (slotted_l2p(5, layer=5, top_k=4, length=2, pull=0.1), 0.02654),
    (DualPrompt(e_layers=(3, 4, 5), g_layers=(1, 2), pull=0.5), 0.05477),
    (CODAPrompt(components=50, length=4, layers=(2, 3, 4), orthogonality=1.0), 0.01334),
    (SPrompts(length=10, clusters=10), 0.02689),
    (HiDePrompt(layers=(2, 3, 4), head_rate=1.0), 0.01298),
    (Finetune(backbone_rate=0.001), 0.02093),
    (LinearProbe(), 0.01111),
    (NCM(metric="euclidean"), 0.0),
    (RanPAC(width=1000), 0.0),
    (ER(method=Finetune(backbone_rate=0.01)), 0.11651),
    (DERPP(method=Finetune(backbone_rate=0.01), alpha=1.0, beta=1.0), 0.24461),
    (EWC(backbone_rate=0.001), 0.01342),
    (LwF(backbone_rate=0.001), 0.01342),
    (SLCA(backbone_rate=0.001), 0.01342),
    (SLDC(distill=10.0, rank=8, alignment=_aligned(0.05)), 0.05601),
)
SPLIT_GLYPHS: Tuned = (
    (slotted_l2p(10, layer=4, top_k=2, length=2, pull=0.1), 0.08708),
    (DualPrompt(e_layers=(4, 5), e_length=20, g_layers=(0,), g_length=2, pull=0.5), 0.0953),
    (CODAPrompt(components=50, length=4, layers=(2, 3, 4), orthogonality=1.0), 0.01334),
    (SPrompts(length=5, clusters=20), 0.07226),
    (HiDePrompt(layers=(2, 3, 4), contrast=0.0, head_rate=1.0), 0.02433),
    (Finetune(backbone_rate=0.001), 0.14049),
    (LinearProbe(), 0.1036),
    (NCM(metric="euclidean"), 0.0),
    (RanPAC(width=2000), 0.0),
    (ER(method=Finetune(backbone_rate=0.01)), 0.05477),
    (DERPP(method=Finetune(backbone_rate=0.01), alpha=1.0, beta=1.0), 0.24461),
    (EWC(backbone_rate=0.003, coefficient=1000.0), 0.11278),
    (LwF(backbone_rate=0.001, coefficient=10.0), 0.07226),
    (SLCA(backbone_rate=0.001), 0.01342),
    (SLDC(distill=0.0, rank=8, alignment=_aligned(0.005)), 0.00873),
)
GLYPH_DOMAINS: Tuned = (
    (slotted_l2p(5, layer=4, top_k=4, length=5, pull=1.0), 0.2638),
    (DualPrompt(e_length=10, g_layers=(0,), g_length=2, pull=0.5), 0.08105),
    (CODAPrompt(orthogonality=0.0), 0.02213),
    (SPrompts(length=5, clusters=20), 0.07226),
    (HiDePrompt(layers=(2, 3, 4), contrast=0.0, head_rate=1.0), 0.02433),
    (Finetune(backbone_rate=0.03), 0.07691),
    (LinearProbe(), 0.12977),
    (NCM(), 0.0),
    (RanPAC(width=2000), 0.0),
    (ER(method=Finetune(backbone_rate=0.03)), 0.07691),
    (DERPP(method=Finetune(backbone_rate=0.03)), 0.06514),
    (EWC(backbone_rate=0.01), 0.05477),
    (LwF(backbone_rate=0.01), 0.14358),
    (SLCA(), 0.05477),
    (SLDC(rank=8, alignment=_aligned(0.05)), 0.08102),
)


def _presets(stream: str, images: Images, tuned: Tuned, joint_rate: float) -> dict[str, Experiment]:
    """Presets of a stream by STREAM-METHOD; `joint` is the linear probe on all tasks at once."""
    presets = {
        f"{stream}-{method_name(method)}": Experiment(
            method, Data(stream), recipe=bundled_recipe(images, rate)
        )
        for method, rate in tuned
    }
    joint = Experiment(
        LinearProbe(), Data(stream, joint=True), recipe=bundled_recipe(images, joint_rate)
    )
    return {**presets, f"{stream}-joint": joint}


BUNDLED_PRESETS: Mapping[str, Experiment] = {
    **_presets("split-fashion-mnist", FASHION, FASHION_MNIST, joint_rate=0.19689),
    **_presets("split-glyphs", GLYPHS, SPLIT_GLYPHS, joint_rate=0.12977),
    **_presets("glyph-domains", GLYPHS, GLYPH_DOMAINS, joint_rate=0.19689),
}
"""By STREAM-METHOD."""
