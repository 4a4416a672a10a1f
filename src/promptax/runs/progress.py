"""How far a run has come: what its checkpoints hold, and what its result says about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.runs.checkpoint import Checkpoint
from promptax.runs.experiment import Experiment, Session, outcome
from promptax.runs.folder import RunFolder, differences
from promptax.runs.given import GivenData
from promptax.runs.outline import Outline
from promptax.runs.provenance import digest
from promptax.training.compiles import Compiles
from promptax.training.evaluate import Measurement
from promptax.training.loop import TaskEnded, empty_matrices
from promptax.training.metrics import AccuracyMatrix
from promptax.training.position import START, StreamPosition
from promptax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """The content of a checkpoint: the state, and what was measured and spent so far."""

    state: TrainState
    matrices: dict[str, AccuracyMatrix]
    position: StreamPosition = START
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiles: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of compilations of each step, in the process that had the most."""
    prompt_usage: list[list[int]] = dataclasses.field(default_factory=list)
    """`[tasks, prompts]`: how often a prompt was given to the test images of a task."""

    @classmethod
    def read(cls, session: Session, folder: RunFolder, *, between: bool = False) -> "Progress":
        """Read the newest checkpoint, or start from the beginning if there is none.

        Args:
            session: The experiment, loaded.
            folder: Its run folder.
            between: Only take checkpoints between two tasks.

        Raises:
            UserError: The checkpoint belongs to another method, seed, image size, stream or
                weights.
        """
        checkpoint = folder.checkpoints.newest(between=between)
        if checkpoint is None:
            return cls(session.state, empty_matrices(session.evaluator))
        check_identity(checkpoint, identity_of(session))
        progress = cls.of(checkpoint, session.state)
        matrices = {
            name: dataclasses.replace(matrix, classes=session.stream.num_classes)
            for name, matrix in progress.matrices.items()
        }
        return dataclasses.replace(progress, matrices=matrices)

    @classmethod
    def of(cls, checkpoint: Checkpoint, like: TrainState) -> "Progress":
        """Read a checkpoint, whose state has the shapes and placement of `like`.

        Raises `UserError` for a record of another version and for a state of another model.
        """
        try:
            progress = cls._from_record(dict(checkpoint.record), like)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {checkpoint.path} has a record that is not of this version "
                f"({type(error).__name__} {error})."
            ) from None
        return dataclasses.replace(progress, state=checkpoint.state(like))

    @classmethod
    def _from_record(cls, record: dict[str, Any], state: TrainState) -> "Progress":
        for name in ("identity", "outline"):
            record.pop(name, None)
        examples = np.asarray(record.pop("test_examples"), int)
        stored = record.pop("matrices").items()
        # Checkpoints of versions that did not measure it have none.
        before = record.pop("before", {})
        unknown = np.full(len(examples), np.nan)
        matrices = {
            name: AccuracyMatrix(
                np.asarray(rows, float),
                examples,
                before=np.asarray(before.get(name, unknown), float).reshape(len(examples)),
            )
            for name, rows in stored
        }
        return cls(state, matrices, StreamPosition(*record.pop("position")), **record)

    def record(self) -> dict[str, Any]:
        """Everything but the state, as JSON."""
        matrices = {name: matrix.values.tolist() for name, matrix in self.matrices.items()}
        before = {
            name: matrix.before.tolist()
            for name, matrix in self.matrices.items()
            if matrix.before is not None
        }
        examples = self.matrices["instance"].examples
        assert examples is not None, "made by `empty_matrices`"
        own = ("state", "matrices", "position")
        others = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own
        }
        position = dataclasses.astuple(self.position)
        return {
            "matrices": matrices,
            "before": before,
            "test_examples": examples.tolist(),
            "position": position,
            **others,
        }

    def timing(self, images: int) -> dict[str, float]:
        """The times of a result, in seconds; those of training and evaluation exclude
        compilation."""
        return {
            "compile": self.compile_seconds,
            "train": self.train_seconds,
            "evaluate": self.evaluate_seconds,
            "images_per_second": images / max(self.train_seconds, 1e-9),
        }


def identity_of(session: Session) -> dict[str, Any]:
    """The settings that must be the same for a checkpoint to make sense.

    Prompts that were trained on other weights, for example, would be noise. The digest of a stream
    is one of its labels and tasks. Images that were given as they are count as well; those of a set
    by name are decoded, and decoders of different versions may differ in a bit.
    """
    facts = session.facts()
    stream = {"sha256": facts["stream"]["sha256"]}
    data = session.experiment.data
    if isinstance(data, GivenData) or data.train is not None:
        stream["images_sha256"] = facts["stream"]["images_sha256"]
    weights = {"sha256": facts["weights"]["sha256"]}
    return {**identity_in(session.experiment), "weights": weights, "stream": stream}


def identity_in(experiment: Experiment) -> dict[str, Any]:
    """The part of `identity_of` that is known before data and weights are read."""
    settings = experiment.to_json()
    return {
        "method": settings["method"],
        "replay": settings["replay"],
        "joint": experiment.data.joint,
        "seed": experiment.seed,
        "images": {"size": experiment.recipe.images.size},
    }


def check_identity(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the identity that a checkpoint records is the expected one.

    Only the fields that `expected` has are compared, and images only if both have their digest:
    earlier versions recorded none.
    """
    stored = checkpoint.record.get("identity")
    stored = stored if isinstance(stored, dict) else {}
    compared = {name: stored.get(name) for name in expected}
    differing = dict(differences(compared, dict(expected)))
    # Last, since other labels or tasks mean other images as well.
    images = differing.pop("stream.images_sha256", (None, None))
    if None not in images:
        differing["stream.images_sha256"] = images
    for name, (old, new) in differing.items():
        raise UserError(
            f"checkpoint {checkpoint.path} is of another run: {name} was {old}, now {new}."
        )


def outline_of(session: Session) -> dict[str, Any]:
    """The outline in a checkpoint, with which it can be opened without the data of the run."""
    weights = session.facts()["weights"]
    kept = {name: weights[name] for name in ("sha256", "metadata") if name in weights}
    path = session.experiment.to_json()["backbone"]["weights"]
    return {"stream": Outline.of(session.stream).to_json(), "weights": {"path": path, **kept}}


def compile_seconds_of(session: Session, spent: dict[str, float]) -> tuple[float, float]:
    """Seconds of compilation that fell into training, and into evaluation."""
    training = spent["train"] + spent["review"] + spent["observe"]
    evaluation = spent["evaluate"]
    if session.trainer.keeps_queries:
        return training + spent["query"], evaluation
    return training, evaluation + spent["query"]


def advanced(
    session: Session, progress: Progress, ended: TaskEnded, compiles: Compiles
) -> Progress:
    """The progress after one more task; its training and evaluation times exclude compilation."""
    spent = compiles.take_seconds()
    training, evaluation = compile_seconds_of(session, spent)
    usage = progress.prompt_usage if ended.measurement is None else _usage(ended.measurement)
    return Progress(
        state=ended.state,
        matrices=ended.matrices,
        position=StreamPosition(ended.task_number + 1),
        train_seconds=progress.train_seconds + ended.train_seconds - training,
        evaluate_seconds=progress.evaluate_seconds + ended.evaluate_seconds - evaluation,
        compile_seconds=progress.compile_seconds + sum(spent.values()),
        compiles=most_compiles(progress.compiles, compiles),
        prompt_usage=usage,
    )


def most_compiles(before: dict[str, int], now: Compiles) -> dict[str, int]:
    """The number of compilations of each step, in whichever process compiled it most often."""
    names = ("train", "review", "observe", "evaluate", "query")
    most = {name: max(before.get(name, 0), now.count[name]) for name in names}
    return {name: count for name, count in most.items() if count}


def result_of(
    session: Session, progress: Progress, first_step: float | None = None
) -> dict[str, Any]:
    """The content of `result.json` as of some progress.

    Args:
        session: The experiment, loaded.
        progress: What was reached.
        first_step: Seconds from the start of the command to the end of its first step.
    """
    tasks = progress.position.tasks
    trainer = session.trainer
    observed = trainer.method.observe is not None
    images = 0
    for number, task in enumerate(session.stream.tasks[:tasks]):
        epochs = trainer.recipe.schedule.epochs if trainer.trains(number) else 0
        images += len(task.index) * (epochs + observed)
    timing = progress.timing(images)
    return {
        **session.facts(),
        **outcome(progress.matrices, tasks),
        "trained_sha256": digest((progress.state.params, progress.state.method_state)),
        "compiles": progress.compiles,
        "skipped_steps": int(progress.state.faults.count),
        "prompt_usage": progress.prompt_usage,
        "timing": {**timing, "first_step": first_step},
    }


def _usage(measurement: Measurement) -> list[list[int]]:
    """How often each prompt was given to the test images of each task; empty without prompts."""
    prompts = 1 + max((int(ids.max(initial=-1)) for ids in measurement.selected), default=-1)
    counts = [np.bincount(ids.ravel(), minlength=prompts) for ids in measurement.selected]
    return [count.tolist() for count in counts] if prompts else []
