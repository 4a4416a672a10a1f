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
    from promptax.core.errors import UserError as UserError
    from promptax.core.settings import Evaluation as Evaluation
    from promptax.core.settings import Images as Images
    from promptax.core.settings import Optimizer as Optimizer
    from promptax.core.settings import Recipe as Recipe
    from promptax.core.settings import Schedule as Schedule
    from promptax.methods.base import AbstractMethod as AbstractMethod
    from promptax.runs.opening import load as load
    from promptax.runs.presets import PRESETS as PRESETS
    from promptax.runs.presets import preset as preset
    from promptax.training.learner import Learner as Learner
    from promptax.training.loop import Fit as Fit
    from promptax.training.loop import fit as fit
    from promptax.training.metrics import AccuracyMatrix as AccuracyMatrix
    from promptax.training.state import TrainState as TrainState
    from promptax.training.trainer import Trainer as Trainer

_HOMES = {
    **dict.fromkeys(("Images", "Optimizer", "Evaluation", "Recipe", "Schedule"), "core.settings"),
    "UserError": "core.errors",
    **dict.fromkeys(("Fit", "fit"), "training.loop"),
    "Learner": "training.learner",
    "AbstractMethod": "methods.base",
    "AccuracyMatrix": "training.metrics",
    **dict.fromkeys(("PRESETS", "preset"), "runs.presets"),
    "load": "runs.opening",
    "Trainer": "training.trainer",
    "TrainState": "training.state",
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
