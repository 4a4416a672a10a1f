"""A run: from settings to a folder with a result, resumable after every task."""

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_type_hints

import cattrs
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from promptax import data, methods, nn
from promptax.config import Recipe
from promptax.errors import UserError, unknown
from promptax.evaluate import Evaluator
from promptax.method import AbstractMethod
from promptax.metrics import AccuracyMatrix
from promptax.train import Trainer, TrainState, train_step

SCHEMA = 1
"""Version of `result.json` and `config.json`."""
METHODS: Mapping[str, type[AbstractMethod]] = {
    "l2p": methods.L2P,
    "dualprompt": methods.DualPrompt,
    "finetune": methods.Finetune,
    "linear": methods.Linear,
    "joint": methods.Joint,
}
"""By the name that the command line knows them under."""


@dataclass(frozen=True)
class Data:
    """Which images come in which task."""

    stream: str = "split-fashion-mnist"
    """A stream that comes with the package; not read where `train` is given."""
    train: Path | None = None
    """Your own training data: a .npz file with `images` (uint8) and `labels`."""
    test: Path | None = None
    """Your own test data, in the same form."""
    tasks: int | None = None
    """Number of tasks to cut the classes of your own data into."""
    class_order: tuple[int, ...] | None = None
    """Order in which classes come; ascending, if None."""
    shuffle_classes: bool = False
    """Draw the order of classes from the run's seed."""

    def load(self, seed: int = 0) -> data.TaskStream:
        """Build the stream. Raises `UserError` where it cannot be."""
        if self.shuffle_classes and self.class_order is not None:
            raise UserError("choose one of a given class order and one drawn from the seed.")
        order = seed if self.shuffle_classes else self.class_order
        if (self.train is None) != (self.test is None):
            raise UserError("your own data needs both a training file and a test file.")
        if self.train is not None and self.test is not None:
            train, test = (_own(path) for path in (self.train, self.test))
            if self.tasks is None:
                raise UserError(f"say into how many tasks the classes of '{self.train}' are cut.")
            return data.class_incremental(
                train, test, num_tasks=self.tasks, class_order=order, name=self.train.stem
            )
        if self.tasks is not None:
            raise UserError("the number of tasks can be set for your own data only.")
        if self.stream not in data.STREAMS:
            raise unknown("stream", self.stream, data.STREAMS)
        return data.STREAMS[self.stream](order)


@dataclass(frozen=True)
class Backbone:
    """The pre-trained ViT."""

    weights: str = "glyph-vit"
    """A .npz or .safetensors file of a ViT (see `promptax weights`), weights that come with the
    package, or `random`."""
    vit: str | None = None
    """Shape of a `random` ViT (such as vit-b/16); others have the shape of their file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the ViT computes in; parameters and softmax stay in float32."""
    remat: bool = False
    """Recompute blocks in the backward pass to save memory."""

    def load(self, image: int) -> tuple[nn.ViT, dict[str, Any]]:
        """The ViT for images of a size, and what a result says of its weights."""
        if self.weights == "random":
            if self.vit is None:
                raise UserError("random weights need a ViT size such as vit-b/16.")
            config = nn.vit_config(self.vit, image)
            vit = nn.ViT(config, key=jr.key(0), dtype=self.dtype, remat=self.remat)
            return vit, {"name": f"random {self.vit}", "sha256": None, "dropped": []}
        weights = nn.read_weights(self.weights)
        return weights.to_vit(image, dtype=self.dtype, remat=self.remat), weights.facts()


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's numbers."""

    method: AbstractMethod
    data: Data = Data()
    backbone: Backbone = Backbone()
    recipe: Recipe = Recipe()
    seed: int = 0
    """Of initialisation, order of examples and augmentation."""

    def to_json(self) -> dict[str, Any]:
        """As `config.json` holds it."""
        method = {"name": method_name(self.method), **_CONVERTER.unstructure(self.method)}
        rest = {
            field.name: _CONVERTER.unstructure(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "method"
        }
        return {"schema": SCHEMA, "method": method, **rest}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Experiment":
        """The inverse of `to_json`. Raises `UserError` for what no version of it wrote."""
        try:
            if stored["schema"] != SCHEMA:
                raise UserError(f"a config of schema {stored['schema']}, but this reads {SCHEMA}.")
            method = dict(stored["method"])
            kind = METHODS[method.pop("name")]
            rest = {key: value for key, value in stored.items() if key not in ("schema", "method")}
            types = get_type_hints(cls)
            values = {key: _CONVERTER.structure(value, types[key]) for key, value in rest.items()}
            return cls(_CONVERTER.structure(method, kind), **values)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, cattrs.BaseValidationError) as error:
            raise UserError(f"the config cannot be read: {_reason(error)}.") from None


def method_name(method: AbstractMethod) -> str:
    """The name of a method on the command line."""
    return {kind: name for name, kind in METHODS.items()}[type(method)]


@dataclass(frozen=True)
class Session:
    """An experiment with its data and weights loaded and its steps ready to compile.

    Raises `UserError` for whatever does not fit, before anything is trained or written.
    """

    experiment: Experiment

    def __post_init__(self):
        trainer, task = self.evaluator.trainer, self.evaluator.trainer.task(self.stream, 0)
        # Tracing the step finds what does not fit; the compiled step reuses the trace.
        batch = next(trainer.batches(self.stream, 0, seed=0))
        eqx.filter_eval_shape(train_step, (trainer, batch, task), self.state)

    @cached_property
    def benchmark(self) -> data.TaskStream:
        """The stream as it is for every method."""
        return self.experiment.data.load(self.experiment.seed)

    @cached_property
    def stream(self) -> data.TaskStream:
        """The stream as this method trains on it."""
        return self.experiment.method.stream(self.benchmark)

    @cached_property
    def _backbone(self) -> tuple[nn.ViT, dict[str, Any]]:
        return self.experiment.backbone.load(self.experiment.recipe.images.size)

    @cached_property
    def _trainer(self) -> tuple[Trainer, TrainState]:
        experiment = self.experiment
        key = jr.key(experiment.seed)
        classes = self.stream.num_classes
        return Trainer.create(
            experiment.method, self._backbone[0], classes, experiment.recipe, key=key
        )

    @property
    def state(self) -> TrainState:
        """Before the first task; donated by the first step."""
        return self._trainer[1]

    @cached_property
    def evaluator(self) -> Evaluator:
        """The trainer and its stream, ready to be measured."""
        return Evaluator(self._trainer[0], self.stream)

    def facts(self) -> dict[str, Any]:
        """What a result says of stream, weights, model, versions and devices."""
        experiment, trainer = self.experiment, self.evaluator.trainer
        schedule, optimizer = experiment.recipe.schedule, experiment.recipe.optimizer
        trainable = _count(self.state.params)
        return {
            "schema": SCHEMA,
            "method": method_name(experiment.method),
            "config": experiment.to_json(),
            "versions": {name: version(name) for name in _PACKAGES},
            "platform": _platform(),
            "weights": self._backbone[1],
            "stream": {
                "name": self.benchmark.name,
                "class_order": [list(split.classes) for split in self.benchmark.stages],
                "class_names": list(self.benchmark.class_names),
                "sha256": self.benchmark.sha256,
            },
            "effective_learning_rate": optimizer.learning_rate * schedule.batch_size / 256,
            "evaluation": _CONVERTER.unstructure(experiment.recipe.protocol),
            "parameters": {"trainable": trainable, "total": trainable + _count(trainer.frozen)},
        }


def outcome(matrices: Mapping[str, AccuracyMatrix], stages: int) -> dict[str, Any]:
    """What a result says of accuracies after so many stages, under every protocol."""

    def figures(matrix: AccuracyMatrix) -> dict[str, Any]:
        return {
            "accuracy_matrix": [[_number(x) for x in row] for row in matrix.values],
            **matrix.after(stages).summary(),
            "after_each_task": [matrix.after(n + 1).summary() for n in range(stages)],
        }

    headline = figures(matrices["instance"])
    beside = {name: figures(matrix) for name, matrix in matrices.items() if name != "instance"}
    return {**headline, "beside": beside, "stages_done": stages}


_PACKAGES = ("promptax", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "numpy")
_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_unstructure_hook(Path, str)
_CONVERTER.register_structure_hook(Path, lambda value, _: Path(value))


def _own(path: Path) -> data.ArraySource:
    arrays = data.read_arrays(path)
    for name in ("images", "labels"):
        if name not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise UserError(
                f"data file '{path}' should hold `images` and `labels`; it has {found}."
            )
    return data.ArraySource(arrays["images"], arrays["labels"], str(path))


def _platform() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
    }


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _reason(error: Exception) -> str:
    if isinstance(error, cattrs.BaseValidationError):
        # Our own checks say more than that a value is invalid.
        explain = lambda cause, kind: (
            str(cause) if isinstance(cause, UserError) else cattrs.v.format_exception(cause, kind)
        )
        return cattrs.transform_error(error, format_exception=explain)[0]
    return f"{type(error).__name__} {error}"
