"""Prompt-based continual learning in JAX: L2P, DualPrompt and their baselines.

The names below are imported at their first use, so that importing the package, as the
command line does to answer `--help`, costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptax import data as data
    from promptax import methods as methods
    from promptax import nn as nn
    from promptax.config import Images as Images
    from promptax.config import Optimizer as Optimizer
    from promptax.config import Protocol as Protocol
    from promptax.config import Recipe as Recipe
    from promptax.config import Schedule as Schedule
    from promptax.errors import UserError as UserError
    from promptax.learner import Learner as Learner
    from promptax.loop import Fit as Fit
    from promptax.loop import fit as fit
    from promptax.method import AbstractMethod as AbstractMethod
    from promptax.metrics import AccuracyMatrix as AccuracyMatrix
    from promptax.presets import PRESETS as PRESETS
    from promptax.presets import preset as preset
    from promptax.runner import load as load
    from promptax.train import Trainer as Trainer
    from promptax.train import TrainState as TrainState

_HOMES = {
    **dict.fromkeys(("Images", "Optimizer", "Protocol", "Recipe", "Schedule"), "config"),
    "UserError": "errors",
    **dict.fromkeys(("Fit", "fit"), "loop"),
    "Learner": "learner",
    "AbstractMethod": "method",
    "AccuracyMatrix": "metrics",
    **dict.fromkeys(("PRESETS", "preset"), "presets"),
    "load": "runner",
    **dict.fromkeys(("Trainer", "TrainState"), "train"),
}
_MODULES = ("data", "methods", "nn")

__all__ = sorted([*_HOMES, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"promptax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'promptax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"promptax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
