"""Run an experiment again, and say whether the same came out and, if not, what can be the cause."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptax.core.errors import UserError
from promptax.runs.experiment import Experiment, stream_facts
from promptax.runs.provenance import describe_source
from promptax.runs.report import flat
from promptax.runs.folder import RunFolder
from promptax.runs.runner import train

Cause = Literal["experiment", "code", "rounding", "nothing"]
"""What a difference between two runs can explain, from most to least."""
MEANING: Mapping[Cause, str] = {
    "experiment": "another experiment, so that no figure need agree",
    "code": "another program, which can change any figure",
    "rounding": "other rounding: last bits differ, and training can magnify that",
    "nothing": "should not matter",
}


@dataclass(frozen=True)
class Difference:
    """Something that two runs do not share."""

    name: str
    before: str
    now: str
    cause: Cause

    def __str__(self) -> str:
        """As a line of text shows it."""
        return f"{self.name}: {self.before} then, {self.now} now ({MEANING[self.cause]})"


@dataclass(frozen=True)
class Outcome:
    """How far the results of two runs agree."""

    same_bits: bool | None
    """Of the trained parameters; None where the first run did not record their digest."""
    same_figures: bool
    """Of the accuracy matrices, under every protocol."""
    largest: float
    """Largest difference between cells of the headline's matrices; NaN if their shapes differ."""
    average: tuple[float | None, float | None]
    """Average accuracy then and now."""


@dataclass(frozen=True)
class Reproduction:
    """A run beside its repetition."""

    differences: tuple[Difference, ...]
    """Of what went in, the gravest first."""
    unrecorded: tuple[str, ...]
    """What the first run says nothing of: it is of an earlier version."""
    outcome: Outcome | None
    """None where nothing was run, since other data or weights make another experiment."""

    @property
    def succeeded(self) -> bool:
        """Whether all figures are the same, and all trained bits as far as they are recorded."""
        done = self.outcome
        return done is not None and done.same_figures and done.same_bits is not False

    def lines(self) -> Iterator[str]:
        """What differs, and what it means."""
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
    original: Path, run: Path, *, resume: bool = False, overwrite: bool = False
) -> Reproduction:
    """Run what `original` holds again into the folder `run`, and compare.

    Nothing is run where data or weights are no longer what they were. Raises `UserError` where
    the original is missing, damaged or unfinished, and as `train` does.
    """
    before = finished(original)
    if os.path.realpath(run) == os.path.realpath(original):
        raise UserError(f"'{run}' is the run itself: choose another folder with --run.")
    try:
        experiment = Experiment.from_json(before["config"])
    except UserError as error:
        raise UserError(f"'{RunFolder(original).result}': {error}") from None
    changed = compare(before, {**before, **_inputs(experiment)})
    if changed.differences:
        return Reproduction(changed.differences, changed.unrecorded, None)
    return compare(before, train(experiment, run, resume=resume, overwrite=overwrite))


def finished(path: Path) -> dict[str, Any]:
    """The result of a run. Raises `UserError` if the run is missing, damaged or unfinished."""
    folder = RunFolder(path)
    result = folder.read(folder.result)
    try:
        done, stages = result["stages_done"], len(result["accuracy_matrix"])
        compare(result, result)  # before hours are spent on what cannot be compared
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{folder.result}' is damaged ({type(error).__name__} {error}): was it written by "
            "another version, or by hand?"
        ) from None
    if done != stages:
        raise UserError(f"run '{path}' has finished {done} of {stages} tasks: --resume it first.")
    return result


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Reproduction:
    """Two results of what should be the same experiment."""
    old, new = (dict(_recorded(result)) for result in (before, now))
    differences = [
        Difference(name, old[name][0], new[name][0], cause)
        for name, (_, cause) in new.items()
        if name in old and old[name] != new[name]
    ]
    differences.sort(key=lambda difference: list(MEANING).index(difference.cause))
    unrecorded = tuple(name for name in new if name not in old)
    return Reproduction(tuple(differences), unrecorded, _outcome(before, now))


def _inputs(experiment: Experiment) -> dict[str, Any]:
    """What weights and data are now."""
    weights = experiment.backbone.load(experiment.recipe.images.size)[1]
    return {"weights": weights, "stream": stream_facts(experiment.data.load(experiment.seed))}


# Whatever decides on a figure stands in one of these, by its place in a result.
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
_ASIDE = ("config.data.dir", "versions.promptax")
"""Where data is says nothing of what it is; the version of the package stands in `source`."""


def _recorded(result: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Cause]]]:
    """What a result says that it was made from: name, value, and what a difference explains."""
    for name, value in flat(result):
        known = [key for key in _CAUSES if name == key or name.startswith(f"{key}.")]
        if known and name not in _ASIDE:
            yield name, (str(value), _CAUSES[max(known, key=len)])
    source = result.get("source")
    if isinstance(source, Mapping):
        yield "source", (describe_source(dict(source)), "code")


def _outcome(before: Mapping[str, Any], now: Mapping[str, Any]) -> Outcome:
    old, new = before.get("trained_sha256"), now.get("trained_sha256")
    matrices = [(result["accuracy_matrix"], _beside(result)) for result in (before, now)]
    return Outcome(
        None if old is None else old == new,
        matrices[0] == matrices[1],
        _largest(matrices[0][0], matrices[1][0]),
        (before.get("average_accuracy"), now.get("average_accuracy")),
    )


def _beside(result: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy matrices of the other protocols."""
    return {name: figures["accuracy_matrix"] for name, figures in result.get("beside", {}).items()}


def _largest(old: Any, new: Any) -> float:
    first, second = (list(itertools.chain.from_iterable(matrix)) for matrix in (old, new))
    if [x is None for x in first] != [x is None for x in second]:
        return math.nan
    pairs = zip(first, second, strict=True)
    return max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)


def _disagreement(outcome: Outcome) -> Iterator[str]:
    if outcome.same_figures:
        yield "every accuracy is the same, but the trained parameters have other bits"
        return
    then, now = ("none" if x is None else f"{100 * x:.2f} %" for x in outcome.average)
    yield (
        f"average accuracy: {then} then, {now} now; "
        f"cells of the matrix differ by at most {100 * outcome.largest:.2f} points"
    )
