"""Run an experiment again, and compare: is the result the same and, if not, what is the cause?"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.methods.base import AbstractMethod
from promptax.runs.experiment import Experiment, sequential_stream, stream_facts
from promptax.runs.folder import RunFolder, leaves_by_name
from promptax.runs.inputs import Found
from promptax.runs.outline import locate_weights
from promptax.runs.provenance import describe_source
from promptax.runs.results import Result, read_result
from promptax.runs.runner import train

Cause = Literal["experiment", "code", "rounding", "nothing"]
"""How much a difference between two runs can explain, from most to least."""
MEANING: Mapping[Cause, str] = {
    "experiment": "another experiment, so that no figure need agree",
    "code": "another program, which can change any figure",
    "rounding": "other rounding: last bits differ, and training can magnify that",
    "nothing": "should not matter",
}


@dataclass(frozen=True)
class Difference:
    """A setting, version or digest that two runs do not share."""

    name: str
    before: str
    now: str
    cause: Cause

    def __str__(self) -> str:
        """A line of text: both values, and what the difference can explain."""
        return f"{self.name}: {self.before} then, {self.now} now ({MEANING[self.cause]})"


@dataclass(frozen=True)
class Outcome:
    """How far the results of two runs agree."""

    same_bits: bool | None
    """Whether the trained parameters agree; None if the first run did not record their digest."""
    same_figures: bool
    """Whether all accuracies agree, under every protocol."""
    largest: float
    """Largest difference between cells of the accuracy matrices; NaN if their shapes differ."""
    average: tuple[float | None, float | None]
    """Average accuracy then and now."""


@dataclass(frozen=True)
class Reproduction:
    """A run compared with its repetition."""

    differences: tuple[Difference, ...]
    """Differences between what the two were made from, the gravest first."""
    unrecorded: tuple[str, ...]
    """Names of what the first run does not record, because it is of an earlier version."""
    outcome: Outcome | None
    """None if nothing was run, because other data or weights make another experiment."""

    @property
    def succeeded(self) -> bool:
        """Whether all figures are the same, and all trained bits as far as they are recorded."""
        done = self.outcome
        return done is not None and done.same_figures and done.same_bits is not False

    def lines(self) -> Iterator[str]:
        """The report: what differs, and what that means."""
        yield from map(str, self.differences)
        if self.unrecorded:
            yield f"not recorded then, so not compared: {', '.join(self.unrecorded)}"
        yield from self._verdict()

    def _verdict(self) -> Iterator[str]:
        if self.outcome is None:
            yield "not reproduced: nothing was run, since it would be another experiment"
        elif self.succeeded:
            bits = " and every bit of the trained parameters" if self.outcome.same_bits else ""
            yield f"reproduced: every accuracy{bits} is the same"
        else:
            yield from _disagreement(self.outcome)
            yield self._explanation()

    def _explanation(self) -> str:
        cause = self.differences[0].cause if self.differences else "nothing"
        if cause == "nothing":
            return "not reproduced, and nothing that is recorded explains it: please report this"
        return f"not reproduced: {self.differences[0].name} explains it, {MEANING[cause]}"


def reproduce(
    original: Path,
    run: Path,
    *,
    method: type[AbstractMethod] | None = None,
    weights: Path | None = None,
    data_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Reproduction:
    """Run an experiment again, and compare the results.

    Nothing is run if data or weights are no longer what they were.

    Args:
        original: folder of the finished run.
        run: folder of the repetition.
        method: the class of the run's method, if it is not part of the package.
        weights: the file of the run's weights; if None, it is looked for by its digest.
        data_dir: the folder of prepared sets, if it has moved.
        resume: whether to go on with a repetition in that folder.
        overwrite: whether to delete the run in that folder.

    Raises:
        UserError: the original is missing, damaged or unfinished, and for all that `train` raises.
    """
    before = finished(original)
    if os.path.realpath(run) == os.path.realpath(original):
        raise UserError(f"'{run}' is the run itself: choose another folder with --run.")
    try:
        experiment = Experiment.from_json(before["config"], method=method)
    except UserError as error:
        raise UserError(f"'{RunFolder(original).result}': {error}") from None
    if experiment.extends is not None:
        raise UserError(
            f"run '{original}' goes on from '{experiment.extends}': reproduce that one, and extend "
            "the repetition with `promptax train --extend`."
        )
    experiment = experiment.located(original, data_dir)
    found = _weights(experiment, before, original, weights)
    changed = compare(before, {**before, **_inputs(experiment, found)})
    if changed.differences:
        return Reproduction(changed.differences, changed.unrecorded, None)
    again = train(experiment, run, resume=resume, overwrite=overwrite, found=found)
    return compare(before, again)


def _weights(
    experiment: Experiment, before: Mapping[str, Any], original: Path, given: Path | None
) -> Found | None:
    """Where the weights of a run are now; None if they were not found, but there is a file where
    its config says, which may hold other weights."""
    try:
        return locate_weights(experiment.backbone, before["weights"], original, given)
    except UserError:
        if given is not None or not Path(experiment.backbone.weights).is_file():
            raise
        return None  # other weights in the same place: the comparison says so


def finished(path: Path) -> Result:
    """The result of a run. Raises `UserError` if the run is missing, damaged or unfinished."""
    result = read_result(RunFolder(path))
    done = result["tasks_done"]
    tasks = len(result["accuracy_matrix"])
    if done != tasks:
        raise UserError(
            f"run '{path}' has finished {done} of {tasks} tasks: go on with resume=True first."
        )
    return result


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Reproduction:
    """Compare two results of what should be the same experiment."""
    old = dict(_recorded(before))
    new = dict(_recorded(now))
    differences = [
        Difference(name, old[name][0], new[name][0], cause)
        for name, (_, cause) in new.items()
        if name in old and old[name] != new[name]
    ]
    differences.sort(key=lambda difference: list(MEANING).index(difference.cause))
    unrecorded = tuple(name for name in new if name not in old)
    return Reproduction(tuple(differences), unrecorded, _outcome(before, now))


def _inputs(experiment: Experiment, found: Found | None) -> dict[str, Any]:
    """The facts about weights and data as they are now, for comparison with a result."""
    weights = experiment.backbone.load(experiment.recipe.images.size, found)[1]
    return {"weights": weights, "stream": stream_facts(sequential_stream(experiment))}


# Everything that the accuracies depend on, by its name in a result; the longest name that fits
# decides.
_CAUSES: Mapping[str, Cause] = {
    "config": "experiment",
    "weights.sha256": "experiment",
    "stream.sha256": "experiment",
    "stream.images_sha256": "experiment",
    "versions": "code",
    "versions.jax": "rounding",
    "versions.jaxlib": "rounding",
    "versions.orbax-checkpoint": "nothing",
    "platform": "rounding",
    "platform.system": "nothing",
    "platform.python": "nothing",
}
_NOT_COMPARED = (
    "config.data.dir",
    "config.data.train",
    "config.data.test",
    "config.backbone.weights",
    "versions.promptax",
)
"""Not compared: where data and weights are does not change what they are, and `source` has the
version of the package."""


def _recorded(result: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Cause]]]:
    """Yield the inputs of a result: name, value, and what a difference in it can explain."""
    for name, value in leaves_by_name(result):
        known = [key for key in _CAUSES if name == key or name.startswith(f"{key}.")]
        if known and name not in _NOT_COMPARED:
            yield name, (str(value), _CAUSES[max(known, key=len)])
    source = result.get("source")
    if isinstance(source, Mapping):
        yield "source", (describe_source(dict(source)), "code")


def _outcome(before: Mapping[str, Any], now: Mapping[str, Any]) -> Outcome:
    digest = before.get("trained_sha256")
    measured = [name for name in ("accuracy_matrix", "accuracy_before") if name in before]
    return Outcome(
        same_bits=None if digest is None else digest == now.get("trained_sha256"),
        same_figures=_accuracies(before, measured) == _accuracies(now, measured),
        largest=_largest_difference(before["accuracy_matrix"], now["accuracy_matrix"]),
        average=(before.get("average_accuracy"), now.get("average_accuracy")),
    )


def _accuracies(result: Mapping[str, Any], measured: Sequence[str]) -> dict[str, Any]:
    """What was measured under every protocol."""
    protocols = {"instance": result, **result.get("beside", {})}
    return {
        protocol: [figures.get(name) for name in measured]
        for protocol, figures in protocols.items()
    }


def _largest_difference(old: Any, new: Any) -> float:
    """Largest difference between the cells of two accuracy matrices; NaN if other cells are None
    (not measured)."""
    old_cells = list(itertools.chain.from_iterable(old))
    new_cells = list(itertools.chain.from_iterable(new))
    if [cell is None for cell in old_cells] != [cell is None for cell in new_cells]:
        return math.nan
    pairs = zip(old_cells, new_cells, strict=True)
    return max((abs(a - b) for a, b in pairs if a is not None), default=0.0)


def _disagreement(outcome: Outcome) -> Iterator[str]:
    if outcome.same_figures:
        yield "every accuracy is the same, but the trained parameters have other bits"
        return
    before, after = ("none" if x is None else f"{100 * x:.2f} %" for x in outcome.average)
    yield (
        f"average accuracy: {before} then, {after} now; "
        f"cells of the matrix differ by at most {100 * outcome.largest:.2f} points"
    )
