"""An experiment: its settings, what training makes of them, and the facts that a result records."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import cattrs
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from promptax import nn
from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.settings import Recipe, Replay
from promptax.core.sharding import make_mesh
from promptax.data.extension import extended
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod
from promptax.methods.registry import class_for_run, method_name
from promptax.methods.rehearsal import AbstractRehearsal, Rehearsal
from promptax.nn.weights.locate import absolute_name
from promptax.runs import provenance
from promptax.runs.converter import CONVERTER, check_json, reason_of, structured
from promptax.runs.given import GivenBackbone, given_parts, without_unused
from promptax.runs.inputs import Backbone, Data, Found
from promptax.runs.results import SCHEMA
from promptax.training.arguments import checked_seed
from promptax.training.evaluate import Evaluator
from promptax.training.metrics import AccuracyMatrix
from promptax.training.optimizer import REFERENCE_BATCH, Optax
from promptax.training.state import TrainState
from promptax.training.trainer import Trainer

SAMPLE = 1024
"""Images of each part that `stream_facts` reads: all of ImageNet would take an hour."""


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's numbers."""

    method: AbstractMethod
    data: Data = Data()
    backbone: Backbone = Backbone()
    recipe: Recipe = Recipe()
    seed: int = 0
    """Seed of initialisation, order of examples and augmentation."""
    replay: Replay = Replay()
    """The replay buffer beside the method; none by default."""
    extends: Path | None = None
    """Folder of the finished run from whose state this one goes on."""
    earlier: tuple[Data, ...] = ()
    """The data of that run, and of the runs that it goes on from; their tasks come first."""

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "seed", checked_seed(self.seed))
        if type(self.method) is Rehearsal:
            raise UserError(
                "an experiment keeps the method and its replay buffer apart: give the wrapped "
                "method as `method`, and the settings of the buffer as `replay`."
            )
        if self.replay.buffer_size:
            self.learner()  # raises if the method cannot replay

    def learner(self) -> AbstractMethod:
        """The method as it is trained: with the replay buffer around it, if there is one."""
        if not self.replay.buffer_size:
            return self.method
        if isinstance(self.method, AbstractRehearsal):
            raise UserError(
                f"{method_name(self.method)} has a replay buffer of its own: set its `replay`."
            )
        return Rehearsal(self.method, self.replay)

    def stream(self) -> TaskStream:
        """Load the stream: the tasks of earlier runs, if there are any, and those of this one."""
        streams = [settings.load(self.seed) for settings in (*self.earlier, self.data)]
        return functools.reduce(extended, streams)

    def located(self, run: Path, data_dir: Path | None = None) -> "Experiment":
        """The same experiment, with its data where they are now; see `Data.located`."""
        return dataclasses.replace(
            self,
            data=self.data.located(run, data_dir),
            earlier=tuple(settings.located(run, data_dir) for settings in self.earlier),
        )

    @property
    def given(self) -> list[str]:
        """The parts (data, backbone, optimizer) that were given as Python objects.

        `config.json` cannot describe them, so commands that need them refuse the run folder.
        """
        return given_parts(self.data, self.backbone, self.recipe)

    @property
    def label(self) -> str:
        """The method's name in results, followed by `-replay` or `-joint` if these are added."""
        replay = "-replay" if self.replay.buffer_size else ""
        return f"{method_name(self.method)}{replay}{'-joint' if self.data.joint else ''}"

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`. Paths are absolute, so that it says the same in every
        folder.

        Raises:
            UserError: A field of the method cannot be written as JSON.
        """
        method = {"name": method_name(self.method), **CONVERTER.unstructure(self.method)}
        for name, value in method.items():
            check_json(f"{type(self.method).__name__}.{name}", value)
        types = get_type_hints(type(self))
        rest = {
            field.name: CONVERTER.unstructure(getattr(self, field.name), types[field.name])
            for field in dataclasses.fields(self)
            if field.name != "method"
        }
        if isinstance(self.recipe.optimizer, Optax):
            rest["recipe"]["optimizer"] = without_unused(rest["recipe"]["optimizer"])
        if not isinstance(self.backbone, GivenBackbone):
            rest["backbone"]["weights"] = absolute_name(self.backbone.weights)
        # Only where there are objects, so that configs of other runs stay as they were.
        given = {"given": self.given} if self.given else {}
        return {"schema": SCHEMA, "method": method, **rest, **given}

    @classmethod
    def from_json(cls, stored: Any, *, method: type[AbstractMethod] | None = None) -> "Experiment":
        """Read what `to_json` wrote.

        Args:
            stored: The content of `config.json`.
            method: The class of the method, if it is not part of the package; None to find it by
                its name.

        Raises:
            UserError: No version of `to_json` wrote this, or the method is not known.
        """
        try:
            if stored["schema"] != SCHEMA:
                raise UserError(f"a config of schema {stored['schema']}, but this reads {SCHEMA}.")
            if stored.get("given"):
                parts = " and ".join(stored["given"])
                raise UserError(
                    f"the run was given its {parts} as Python objects, which a config cannot "
                    "describe: go on with it in Python, where px.fit takes the same objects."
                )
            settings = dict(stored["method"])
            kind = class_for_run(settings.pop("name"), method)
            rest = {key: value for key, value in stored.items() if key not in ("schema", "method")}
            types = get_type_hints(cls)
            values = {key: structured(key, value, types[key]) for key, value in rest.items()}
            return cls(CONVERTER.structure(settings, kind), **values)
        except UserError:
            raise
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            cattrs.BaseValidationError,
        ) as error:
            raise UserError(f"the config cannot be read: {reason_of(error)}.") from None


@dataclass(frozen=True)
class Session:
    """An experiment with its data and weights loaded and its steps ready to compile.

    Raises `UserError` for whatever does not fit, before anything is trained or written.
    """

    experiment: Experiment
    mesh: Mesh = field(default_factory=make_mesh)
    found: Found | None = None
    """Where the weights are now, if not where the experiment says."""

    def __post_init__(self):
        # Made now because it checks votes and batches, and nothing has been written yet.
        _ = self.evaluator
        trainer = self.trainer
        task = trainer.task(self.stream, 0)
        # Tracing the step finds what does not fit; the compiled step reuses the trace.
        shape = (len(self.stream.tasks[0].index), trainer.query_dim)
        queries = np.zeros(shape, np.float32) if trainer.keeps_queries else None
        for batch in itertools.islice(trainer.batches(self.stream, 0, seed=0, queries=queries), 1):
            eqx.filter_eval_shape(trainer.step, self.state, batch, task)

    @cached_property
    def stream(self) -> TaskStream:
        """The tasks, loaded when they are first needed."""
        return self.experiment.stream()

    @cached_property
    def _stream_facts(self) -> dict[str, Any]:
        return stream_facts(sequential_stream(self.experiment))

    @cached_property
    def _backbone(self) -> tuple[nn.AbstractBackbone, dict[str, Any]]:
        return self.experiment.backbone.load(self.experiment.recipe.images.size, self.found)

    @cached_property
    def _trainer(self) -> tuple[Trainer, TrainState]:
        experiment = self.experiment
        return Trainer.create(
            experiment.learner(),
            self._backbone[0],
            self.stream,
            experiment.recipe,
            mesh=self.mesh,
            key=jr.key(experiment.seed),
        )

    @property
    def backbone(self) -> nn.AbstractBackbone:
        """The pre-trained backbone, loaded when it is first needed."""
        return self._backbone[0]

    @property
    def keeps_images(self) -> bool:
        """Whether the method keeps images of the stream in a replay buffer."""
        return isinstance(self.experiment.learner(), AbstractRehearsal)

    @property
    def weights(self) -> dict[str, Any]:
        """The facts about the weights, as a result records them."""
        return self._backbone[1]

    @property
    def trainer(self) -> Trainer:
        """The method on its backbone, ready to take steps."""
        return self._trainer[0]

    @property
    def state(self) -> TrainState:
        """Before the first task; donated by the first step."""
        return self._trainer[1]

    @cached_property
    def evaluator(self) -> Evaluator:
        """Measures the trainer's states on the stream."""
        return Evaluator(self.trainer, self.stream)

    def facts(self) -> dict[str, Any]:
        """The facts that a result records about stream, weights, model, versions and devices."""
        experiment = self.experiment
        trainer = self.trainer
        schedule = experiment.recipe.schedule
        optimizer = experiment.recipe.optimizer
        # A transformation of Optax has its rate inside.
        is_own = isinstance(optimizer, Optax)
        rate = None if is_own else optimizer.learning_rate * schedule.batch_size / REFERENCE_BATCH
        trainable = _count(self.state.params)
        return {
            "schema": SCHEMA,
            "method": experiment.label,
            "config": experiment.to_json(),
            "source": provenance.source(),
            "versions": provenance.versions(),
            "platform": {**provenance.machine(), "mesh": dict(self.mesh.shape)},
            "weights": self.weights,
            "stream": self._stream_facts,
            "effective_learning_rate": rate,
            "evaluation": CONVERTER.unstructure(experiment.recipe.evaluation),
            "parameters": {
                "trainable": trainable,
                "total": trainable + _count(trainer.setup.frozen),
            },
            "memory_bytes": _nbytes(self.state.method_state),
        }


def sequential_stream(experiment: Experiment) -> TaskStream:
    """The stream of an experiment before its tasks are joined, if they are.

    Joint training has the same examples, so its results belong beside those of sequential training.
    """
    settings = dataclasses.replace(experiment.data, joint=False)
    return dataclasses.replace(experiment, data=settings).stream()


def stream_facts(stream: TaskStream) -> dict[str, Any]:
    """The facts that a result records about a stream.

    `images_sha256` is the digest of images that are evenly spread over it.
    """
    pixels = hashlib.sha256()
    for source, splits in ((stream.train, stream.tasks), (stream.test, stream.test_sets)):
        index = np.concatenate([split.index for split in splits])
        some = np.linspace(0, len(index) - 1, min(len(index), SAMPLE)).astype(int)
        pixels.update(source[index[some]].tobytes())
    return {
        "name": stream.name,
        # Only where there is a choice, so that results of earlier versions stay comparable.
        **({"split": stream.split} if stream.split else {}),
        "class_order": [list(split.classes) for split in stream.tasks],
        "class_names": list(stream.class_names),
        "sha256": stream.sha256,
        "images_sha256": pixels.hexdigest(),
    }


def outcome(matrices: Mapping[str, AccuracyMatrix], tasks: int) -> dict[str, Any]:
    """The figures of a result after so many tasks, under every protocol."""

    def figures(matrix: AccuracyMatrix) -> dict[str, Any]:
        before = None if matrix.before is None else [_number(x) for x in matrix.before]
        return {
            "accuracy_matrix": [[_number(x) for x in row] for row in matrix.values],
            "accuracy_before": before,
            **matrix.after(tasks).summary(),
            "after_each_task": [
                matrix.after(n + 1 if matrix.measured(n) else 0).summary() for n in range(tasks)
            ],
        }

    headline = figures(matrices["instance"])
    beside = {name: figures(matrix) for name, matrix in matrices.items() if name != "instance"}
    examples = matrices["instance"].examples
    counts = None if examples is None else examples.tolist()
    return {**headline, "beside": beside, "tasks_done": tasks, "test_examples": counts}


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def _nbytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
