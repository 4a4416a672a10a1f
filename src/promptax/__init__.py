"""Prompt-based continual learning in JAX: L2P, DualPrompt and their baselines.

The names below are imported at their first use, so that importing the package, as the
command line does to answer `--help`, costs nothing. Nothing else is imported here either: until
`promptax/__main__.py` has run, a Ctrl-C would end in a traceback.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from promptax import data as data
    from promptax import methods as methods
    from promptax import nn as nn
    from promptax.core.errors import UserError as UserError
    from promptax.core.settings import Augment as Augment
    from promptax.core.settings import Evaluation as Evaluation
    from promptax.core.settings import Images as Images
    from promptax.core.settings import Optimizer as Optimizer
    from promptax.core.settings import Recipe as Recipe
    from promptax.core.settings import Replay as Replay
    from promptax.core.settings import Saving as Saving
    from promptax.core.settings import Schedule as Schedule
    from promptax.methods.base import AbstractMethod as AbstractMethod
    from promptax.runs.experiment import Experiment as Experiment
    from promptax.runs.fitting import Run as Run
    from promptax.runs.fitting import fit as fit
    from promptax.runs.inputs import Backbone as Backbone
    from promptax.runs.inputs import Data as Data
    from promptax.runs.loading import load as load
    from promptax.runs.presets import PRESETS as PRESETS
    from promptax.runs.presets import preset as preset
    from promptax.runs.runner import train as train
    from promptax.training.callbacks import Callback as Callback
    from promptax.training.callbacks import ProgressBar as ProgressBar
    from promptax.training.evaluate import Evaluator as Evaluator
    from promptax.training.evaluate import Measurement as Measurement
    from promptax.training.learner import Learner as Learner
    from promptax.training.loop import Fit as Fit
    from promptax.training.loop import StepDone as StepDone
    from promptax.training.loop import TaskEnded as TaskEnded
    from promptax.training.metrics import AccuracyMatrix as AccuracyMatrix
    from promptax.training.optimizer import Optax as Optax
    from promptax.training.state import Metrics as Metrics
    from promptax.training.state import TrainState as TrainState
    from promptax.training.trainer import Trainer as Trainer

    __version__: str

_SETTINGS = (
    "Augment",
    "Evaluation",
    "Images",
    "Optimizer",
    "Recipe",
    "Replay",
    "Saving",
    "Schedule",
)
_HOMES = {
    **dict.fromkeys(_SETTINGS, "core.settings"),
    "UserError": "core.errors",
    **dict.fromkeys(("Callback", "ProgressBar"), "training.callbacks"),
    "Optax": "training.optimizer",
    **dict.fromkeys(("Evaluator", "Measurement"), "training.evaluate"),
    **dict.fromkeys(("Fit", "StepDone", "TaskEnded"), "training.loop"),
    "Learner": "training.learner",
    "AbstractMethod": "methods.base",
    "AccuracyMatrix": "training.metrics",
    **dict.fromkeys(("Run", "fit"), "runs.fitting"),
    "Experiment": "runs.experiment",
    **dict.fromkeys(("Backbone", "Data"), "runs.inputs"),
    "train": "runs.runner",
    **dict.fromkeys(("PRESETS", "preset"), "runs.presets"),
    "load": "runs.loading",
    "Trainer": "training.trainer",
    **dict.fromkeys(("Metrics", "TrainState"), "training.state"),
}
_MODULES = ("data", "methods", "nn")

__all__ = sorted([*_HOMES, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]

# Type checkers see the imports above: with this function, they would take any misspelt name too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        import importlib

        if name == "__version__":
            from importlib.metadata import version

            return version("promptax")
        if name in _MODULES:
            return importlib.import_module(f"promptax.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'promptax' has no attribute '{name}'")
        from promptax.core.described import document_fields

        value = getattr(importlib.import_module(f"promptax.{_HOMES[name]}"), name)
        document_fields(value)
        return value


def __dir__() -> list[str]:
    return __all__
