"""Presets for what comes with the package, tuned by `scripts/tune.py`."""

import dataclasses
from collections.abc import Mapping

from promptax.config import Images, Optimizer, Protocol, Recipe, Schedule
from promptax.experiment import METHODS, Experiment
from promptax.inputs import Data
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


def slotted_l2p(tasks: int) -> L2P:
    """L2P with four prompts of its own for each task in training, as on 5-datasets, in block 3.

    Without slots, the few prompts that all images of the box choose are trained over by every
    task; at block 0 they disturb a small ViT more than they help (see `scripts/tune.jsonl`).
    """
    return L2P(
        pool_size=4 * tasks,
        prompt_length=5,
        layers=(3,),
        readout="token",
        pull=0.5,
        vote_group=None,
        task_mask=True,
        transfer_prompts=True,
    )


def _box(stream: str, images: Images, tasks: int) -> dict[str, Experiment]:
    """Every method on a box stream, as tuned on split-fashion-mnist, where it is tuned."""
    tuned = (
        (slotted_l2p(tasks), 0.03),
        (DualPrompt(pull=0.5, e_length=10, e_layers=(2, 3, 4), g_length=2), 0.13092),
        (Finetune(), 0.00022),
        (Linear(), 0.03),
        (Joint(), 0.20559),
        (NCM(), 0.0),
        (RanPAC(width=2000), 0.0),
        # Not tuned yet.
        (CODAPrompt(tasks=tasks), 0.01),
        (SPrompts(tasks=tasks), 0.03),
        (HiDePrompt(tasks=tasks, head_rate=1.0), 0.03),
        # Not tuned yet: at the rate of fine-tuning, which they extend.
        (ER(), 0.00022),
        (DERPP(), 0.00022),
        (EWC(), 0.00022),
        (LwF(), 0.00022),
        # Their rate is that of the head, of which the backbone gets a fraction.
        (SLCA(), 0.022),
        (SLDC(), 0.022),
    )
    names = {kind: name for name, kind in METHODS.items()}
    return {
        f"{stream}-{names[type(method)]}": Experiment(
            method, Data(stream), recipe=box_recipe(images, rate)
        )
        for method, rate in tuned
    }


BOX_PRESETS: Mapping[str, Experiment] = {
    **_box("split-fashion-mnist", FASHION, 5),
    **_box("split-glyphs", GLYPHS, 10),
    **_box("glyph-domains", GLYPHS, 5),
}
"""By STREAM-METHOD."""
