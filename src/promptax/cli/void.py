"""Flags of `promptax train` that another flag makes void: they are refused, not ignored."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptax.core.errors import UserError
from promptax.runs.folder import leaves_by_name


@dataclass(frozen=True)
class Rule:
    """When some flags have an effect. A value that a preset sets is not a flag, so it may have
    none."""

    flags: tuple[str, ...]
    works: Callable[[Any], bool]
    """Whether they have an effect, given all parsed flags."""
    remedy: str
    """Advice: the other flag, and whether to give it or to leave it out."""


RULES = (
    Rule(
        ("--momentum", "--nesterov"),
        lambda flags: flags.optimizer.name == "sgd",
        "it belongs to --optimizer sgd",
    ),
    Rule(
        ("--weight-decay",),
        lambda flags: flags.optimizer.name != "adam" or not flags.optimizer.weight_decay,
        "--optimizer adam has none, so choose --optimizer adamw or sgd",
    ),
    Rule(
        ("--step-at",),
        lambda flags: flags.optimizer.schedule == "step",
        "it belongs to --schedule step",
    ),
    Rule(
        ("--schedule-floor",),
        lambda flags: flags.optimizer.schedule == "cosine",
        "it belongs to --schedule cosine",
    ),
    Rule(
        ("--cache-queries",),
        lambda flags: flags.images.fixed,
        "augmented images differ in every epoch, so give --images.crop-area 1 1 and "
        "--images.no-flip, and leave out --images.augment",
    ),
    Rule(
        ("--images.crop-aspect",),
        lambda flags: flags.images.crop_area != (1.0, 1.0),
        "images are only cropped with a smaller --images.crop-area",
    ),
    Rule(
        ("--images.augment.magnitude",),
        lambda flags: flags.images.augment.operations > 0,
        "it belongs to --images.augment.operations",
    ),
    Rule(
        ("--images.augment.erase-area", "--images.augment.erase-aspect"),
        lambda flags: flags.images.augment.erase > 0,
        "it belongs to --images.augment.erase",
    ),
    Rule(
        ("--images.augment.mix-probability",),
        lambda flags: flags.images.augment.mixup > 0 or flags.images.augment.cutmix > 0,
        "it belongs to --images.augment.mixup or --images.augment.cutmix",
    ),
    Rule(
        ("--buffer-per-class", "--buffer-kind", "--buffer-epochs", "--replay-batch"),
        lambda flags: flags.buffer.buffer_size > 0 or _setting(flags.method, "buffer_size", 0) > 0,
        "there is no buffer, so give --buffer-size",
    ),
    Rule(
        ("--class-mask",),
        lambda flags: flags.method.loss is not None or flags.class_mask == "task",
        "the method has no training loss in which classes could compete",
    ),
    Rule(
        ("--backbone-rate",),
        lambda flags: _setting(flags.method, "train_backbone", True),
        "the backbone is frozen, so give --train-backbone",
    ),
    Rule(
        ("--adapter-width",),
        lambda flags: _setting(flags.method, "phase1", "adapter") == "adapter",
        "it belongs to --phase1 adapter",
    ),
    Rule(
        ("--prompt-tokens",),
        lambda flags: _setting(flags.method, "phase1", "vpt") == "vpt",
        "it belongs to --phase1 vpt",
    ),
    Rule(
        ("--align-samples", "--align-batch", "--align-rate", "--align-floor"),
        lambda flags: _setting(flags.method, "align_epochs", 1) > 0,
        "the head is not aligned, so give --align-epochs",
    ),
    Rule(
        ("--temperature",),
        lambda flags: _setting(flags.method, "contrast", 1.0) > 0,
        "it belongs to --contrast",
    ),
    Rule(
        ("--transfer-keys",),
        lambda flags: _setting(flags.method, "learned_keys", True),
        "the key of a prompt is its mean, so give --learned-keys",
    ),
    Rule(
        ("--g-length",),
        lambda flags: bool(_setting(flags.method, "g_layers", (0,))),
        "there is no G-prompt, so give --g-layers",
    ),
    Rule(
        (
            *("--e-length", "--pool-size", "--top-k", "--pull", "--query-kind", "--vote-group"),
            *("--task-mask", "--transfer-prompts", "--transfer-keys"),
        ),
        lambda flags: bool(_setting(flags.method, "e_layers", (0,))),
        "there is no E-prompt, so give --e-layers",
    ),
    Rule(
        ("--data.stream", "--data-dir"),
        lambda flags: flags.data.train is None,
        "--data.train names the data, so leave one of them out",
    ),
    Rule(
        ("--data.stream",),
        lambda flags: flags.data.sets is None,
        "--data.sets names the data, so leave one of them out",
    ),
    Rule(
        ("--data.tasks",),
        lambda flags: flags.data.tasks is None or flags.data.task_sizes is None,
        "--data.task-sizes gives the number of tasks, so leave one of them out",
    ),
    Rule(
        ("--data.class-order",),
        lambda flags: flags.data.class_order is None or not flags.data.shuffle_classes,
        "--data.shuffle-classes draws the order from the seed, so leave one of them out",
    ),
    Rule(
        ("--data.reverse",),
        lambda flags: not flags.data.joint or flags.data.first is not None,
        "--data.joint trains on all tasks at once, whatever their order",
    ),
    Rule(
        ("--distributed.timeout",),
        lambda flags: flags.machine.distributed.wanted,
        "it belongs to --distributed",
    ),
)
"""In the order in which they are checked."""


def refuse_void(flags: Any, argv: Sequence[str]) -> None:
    """Raise `UserError` for a flag that was given and has no effect beside the others.

    Args:
        flags: The parsed flags.
        argv: The arguments that they were parsed from.
    """
    given = set(_names(argv))
    for rule in RULES:
        for flag in rule.flags:
            if flag in given and not rule.works(flags):
                raise UserError(f"{flag} has no effect here: {rule.remedy}.")


_GROUPS = {
    "method": "",
    "backbone": "",
    "replay": "",
    "recipe.optimizer": "",
    "recipe.schedule": "",
    "recipe": "",
    "data": "data.",
    "recipe.images": "images.",
    "recipe.images.augment": "images.augment.",
}
"""What comes before the names of flags, for each group of settings of a config."""


def refuse_void_settings(flags: Any, given: Mapping[str, Any]) -> None:
    """Raise `UserError` for a setting of a config that has no effect beside the others.

    Args:
        flags: The flags with the settings of the config as their values.
        given: The settings that the config itself gives, by name.
    """
    for name, value in leaves_by_name(given):
        if value is None or value is False:
            continue
        group, _, setting = name.rpartition(".")
        flag = f"--{_GROUPS.get(group, f'{group}.')}{setting}".replace("_", "-")
        for rule in RULES:
            if flag in rule.flags and not rule.works(flags):
                raise UserError(f"{name} ({flag}) has no effect here: {rule.remedy}.")


def _names(argv: Sequence[str]) -> Iterator[str]:
    """The names of the flags in the arguments; without those that turn something off."""
    for word in argv:
        if word.startswith("--"):
            yield word.partition("=")[0].replace("_", "-")


def _setting(settings: Any, name: str, default: Any) -> Any:
    """A setting of a method or of a part of it, such as its alignment; `default` if it has none."""
    if hasattr(settings, name):
        return getattr(settings, name)
    parts = [part for part in vars(settings).values() if dataclasses.is_dataclass(part)]
    values = [_setting(part, name, None) for part in parts]
    return next((value for value in values if value is not None), default)
