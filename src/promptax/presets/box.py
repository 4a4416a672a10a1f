"""Presets for what comes with the package, tuned by `scripts/tune.py`."""

import dataclasses
from collections.abc import Mapping

from promptax.config import Images, Optimizer, Protocol, Recipe, Schedule
from promptax.experiment import METHODS, Experiment
from promptax.inputs import Data
from promptax.method import AbstractMethod
from promptax.methods import (
    DERPP,
    ER,
    EWC,
    L2P,
    NCM,
    SLCA,
    SLDC,
    CODAPrompt,
    DualPrompt,
    Finetune,
    HiDePrompt,
    Joint,
    Linear,
    LwF,
    RanPAC,
    SPrompts,
)

FASHION = Images(size=32, resize=None, crop_area=(1.0, 1.0))
"""Small grey images as they are; half of the training images mirrored."""
GLYPHS = dataclasses.replace(FASHION, flip=False)
"""Small grey images as they are: a mirrored letter is another one."""


def box_recipe(images: Images, learning_rate: float, epochs: int = 3, *, every: int = 1) -> Recipe:
    """Adam at a constant rate, in batches of 32; measured after every so many-th task."""
    optimizer, schedule = Optimizer(learning_rate=learning_rate), Schedule(epochs, 32)
    return Recipe(optimizer, schedule, images, Protocol(every=every))


def slotted_l2p(tasks: int, *, layer: int, top_k: int, length: int, pull: float) -> L2P:
    """L2P with `top_k` prompts of its own for each task in training, as on 5-datasets.

    Without slots, the few prompts that all images of the box choose are trained over by every
    task; at block 0 they disturb a small ViT more than they help.
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


Tuned = tuple[tuple[AbstractMethod, float], ...]
"""Methods and their learning rates."""

FASHION_MNIST: Tuned = (
    (slotted_l2p(5, layer=5, top_k=4, length=2, pull=0.1), 0.02654),
    (DualPrompt(e_layers=(3, 4, 5), e_length=5, g_layers=(1, 2), pull=0.5), 0.05477),
    (Finetune(), 0.00003),
    (Linear(), 0.01111),
    (Joint(), 0.19689),
)
SPLIT_GLYPHS: Tuned = (
    (slotted_l2p(10, layer=4, top_k=2, length=2, pull=0.1), 0.08708),
    (DualPrompt(e_layers=(4, 5), e_length=20, g_layers=(0,), g_length=2, pull=0.5), 0.0953),
    (Finetune(), 0.00006),
    (Linear(), 0.1036),
    (Joint(), 0.12977),
)
GLYPH_DOMAINS: Tuned = (
    (slotted_l2p(5, layer=4, top_k=4, length=5, pull=1.0), 0.2638),
    (DualPrompt(e_layers=(2, 3, 4), e_length=10, g_layers=(0,), g_length=2, pull=0.5), 0.08105),
    (Finetune(), 0.0017),
    (Linear(), 0.12977),
    (Joint(), 0.19689),
)


def _not_tuned(tasks: int) -> Tuned:
    """Closed forms; the others with their papers' settings, or at the rate that suits fine-tuning,
    which they extend."""
    return (
        (NCM(), 0.0),
        (RanPAC(width=2000), 0.0),
        (CODAPrompt(tasks=tasks), 0.01),
        (SPrompts(tasks=tasks), 0.03),
        (HiDePrompt(tasks=tasks, head_rate=1.0), 0.03),
        (ER(), 0.0001),
        (DERPP(), 0.0001),
        (EWC(), 0.0001),
        (LwF(), 0.0001),
        # Their rate is that of the head, of which the backbone gets a fraction.
        (SLCA(), 0.03),
        (SLDC(), 0.03),
    )


def _box(stream: str, images: Images, tasks: int, tuned: Tuned) -> dict[str, Experiment]:
    names = {kind: name for name, kind in METHODS.items()}
    return {
        f"{stream}-{names[type(method)]}": Experiment(
            method, Data(stream), recipe=box_recipe(images, rate)
        )
        for method, rate in (*tuned, *_not_tuned(tasks))
    }


BOX_PRESETS: Mapping[str, Experiment] = {
    **_box("split-fashion-mnist", FASHION, 5, FASHION_MNIST),
    **_box("split-glyphs", GLYPHS, 10, SPLIT_GLYPHS),
    **_box("glyph-domains", GLYPHS, 5, GLYPH_DOMAINS),
}
"""By STREAM-METHOD."""
