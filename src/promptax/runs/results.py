"""The schema of `result.json`: every field, its type and the values that a run can give it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.runs.folder import RunFolder
from promptax.training.metrics import AccuracyMatrix

SCHEMA = 3
"""Version of `result.json` and `config.json`."""
Result = Mapping[str, Any]
"""The content of a `result.json`."""
Check = Callable[[Any, str], None]
"""Raises `UserError` if a value, at a path such as `timing.train`, is not what it should be."""

_LARGEST = 2**63 - 1
"""Largest whole number: counts, sizes and seeds are 64-bit integers."""
_MOST_IMAGES = 2**40
"""In a test set: more make the sums of whole numbers overflow."""
_ROUNDING = 1e-6
"""Largest difference between a figure and the same one computed on another machine."""
_LONGEST = 60
"""Most characters of a wrong value that an error shows."""


def read_result(folder: RunFolder) -> Result:
    """Read the result of a run.

    Results of earlier versions are read as well: what they did not record is missing in them.

    Raises:
        UserError: There is none, or a field of it is missing, unknown, of another type or out of
            range: the first one is named.
    """
    result = folder.read(folder.result)
    try:
        check_result(result)
    except UserError as error:
        raise UserError(
            f"'{folder.result}' is damaged: {error} Was it written by another version, or by hand?"
        ) from None
    return result


def check_result(result: Result) -> None:
    """Check every field of a result. Raises `UserError` that names the first wrong one."""
    _RESULT(result, "")
    rows = result["accuracy_matrix"]
    if len({len(row) for row in rows}) != 1:
        raise UserError("accuracy_matrix has rows of several lengths, or none.")
    if result["tasks_done"] > len(rows):
        raise UserError(f"tasks_done is {result['tasks_done']} of {len(rows)} tasks.")
    finished = result["tasks_done"] == len(rows)
    if finished and len(result["after_each_task"]) != len(rows):
        raise UserError(
            f"after_each_task has {len(result['after_each_task'])} members; expected {len(rows)}."
        )
    if len({len(counts) for counts in result.get("prompt_usage", ())}) > 1:
        raise UserError("prompt_usage has rows of several lengths.")
    beside = result.get("beside", {}).items()
    by_path = {"": result} | {f"beside.{printable(name)}": figures for name, figures in beside}
    for path, figures in by_path.items():
        if [len(row) for row in figures["accuracy_matrix"]] != [len(row) for row in rows]:
            raise UserError(f"{_below(path, 'accuracy_matrix')} is not {len(rows)} rows.")
        _check_before(figures, path)
    if result["schema"] == SCHEMA:  # earlier versions recorded fewer figures
        examples = result.get("test_examples")
        if examples is not None and len(examples) != len(rows[0]):
            raise UserError(f"test_examples has {len(examples)} members; expected {len(rows[0])}.")
        empty = AccuracyMatrix.empty(
            len(rows),
            len(rows[0]),
            examples=None if examples is None else np.asarray(examples),
            classes=len(result["stream"].get("class_names", ())),
        )
        for path, figures in by_path.items():
            _check_figures(figures, result["tasks_done"], empty, path)


def _check_before(figures: Mapping[str, Any], path: str) -> None:
    """Raise `UserError` for accuracies before a task that cannot belong to the matrix."""
    matrix = figures["accuracy_matrix"]
    before = figures.get("accuracy_before")
    if before is None:
        return
    path = _below(path, "accuracy_before")
    if len(before) != len(matrix[0]):
        raise UserError(f"{path} has {len(before)} members; expected {len(matrix[0])}.")
    has_own_test_sets = len(matrix) == len(matrix[0])
    for number, accuracy in enumerate(before):
        if accuracy is not None and (number == 0 or not has_own_test_sets):
            raise _misfit(f"{path}[{number}]", accuracy, "null, since no task comes before")


def _check_figures(
    figures: Mapping[str, Any], tasks: int, empty: AccuracyMatrix, path: str
) -> None:
    """Raise `UserError` for figures that are not those of the accuracies beside them.

    Args:
        figures: Accuracies, and what was computed from them.
        tasks: Number of tasks that are done.
        empty: A matrix for these accuracies, in which nothing is entered.
        path: Of `figures` in the result.
    """
    # null is NaN: not measured.
    matrix = replace(empty, values=np.asarray(figures["accuracy_matrix"], float))
    before = figures.get("accuracy_before")
    if before is not None:
        matrix = replace(matrix, before=np.asarray(before, float))
    _check_summary(figures, matrix.after(tasks), path)
    for number, summary in enumerate(figures["after_each_task"][: len(matrix.values)]):
        stage = matrix.after(number + 1 if matrix.measured(number) else 0)
        _check_summary(summary, stage, _below(path, f"after_each_task[{number}]"))


def _check_summary(figures: Mapping[str, Any], matrix: AccuracyMatrix, path: str) -> None:
    for name, expected in matrix.summary().items():
        recorded = figures.get(name, expected)
        if (recorded is None) != (expected is None) or not math.isclose(
            recorded or 0.0, expected or 0.0, abs_tol=_ROUNDING
        ):
            raise _misfit(_below(path, name), recorded, f"{expected}, which the accuracies give")


def _misfit(path: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{path or 'it'} is {printable(_shown(value), _LONGEST)}; expected {expected}."
    )


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a number of more than 64 bits"  # Python refuses to print thousands of digits
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return repr(value)


def _of_type(kind: type, expected: str) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, kind):
            raise _misfit(path, value, expected)

    return check


def _whole(least: int = 0, most: int = _LARGEST) -> Check:
    def check(value: Any, path: str) -> None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not least <= value <= most:
            bounds = f"from {least}" + (f" to {most}" if most < _LARGEST else "")
            raise _misfit(path, value, f"a whole number {bounds}")

    return check


def _number(least: float, most: float = math.inf) -> Check:
    def check(value: Any, path: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Beyond the last bound, a number of 400 digits cannot become a float.
        if not is_number or not least <= value <= most or not abs(value) < _LARGEST:
            bounds = f"from {least:g}" + (f" to {most:g}" if most < math.inf else "")
            raise _misfit(path, value, f"a number {bounds}")

    return check


def _or_none(member: Check) -> Check:
    """What was not measured, or is not known, is null."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            member(value, path)

    return check


def _list_of(member: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise _misfit(path, value, "a list")
        for position, item in enumerate(value):
            member(item, f"{path}[{position}]")

    return check


def _mapping_to(member: Check) -> Check:
    """An object with any names, such as those of libraries."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(path, value, "an object")
        for name, item in value.items():
            member(item, _below(path, name))

    return check


def _object(
    fields: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    others: bool = False,
) -> Check:
    """An object with these fields.

    Args:
        fields: the fields that every version has written.
        optional: the fields that some versions have not written.
        others: whether other fields may be there, which are not checked.
    """
    known = {**fields, **(optional or {})}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(path, value, "an object")
        for name in fields:
            if name not in value:
                raise UserError(f"{_below(path, name)} is missing.")
        for name, item in value.items():
            if name in known:
                known[name](item, _below(path, name))
            elif not others:
                raise UserError(f"{_below(path, name)} is unknown.")

    return check


def _below(path: str, name: str) -> str:
    return f"{path}.{printable(name, _LONGEST)}".lstrip(".")


_ANYTHING: Check = lambda value, path: None
_TEXT = _of_type(str, "a text")
_YES_OR_NO = _of_type(bool, "true or false")
_ACCURACY = _or_none(_number(0.0, 1.0))
_DIFFERENCE = _or_none(_number(-1.0, 1.0))
_SECONDS = _or_none(_number(0.0))
_RATE = _or_none(_number(0.0))
_TIMES = ("compile", "train", "evaluate", "first_step")
_SUMMARY: Mapping[str, Check] = {
    "average_accuracy": _ACCURACY,
    "average_incremental_accuracy": _ACCURACY,
    "accuracy_by_example": _ACCURACY,
    "incremental_accuracy_by_example": _ACCURACY,
    "forgetting": _DIFFERENCE,
    "backward_transfer": _DIFFERENCE,
    "forward_transfer": _DIFFERENCE,
    "learning_accuracy": _ACCURACY,
}
"""The figures of an accuracy matrix."""
_MATRIX: Mapping[str, Check] = {
    "accuracy_matrix": _list_of(_list_of(_ACCURACY)),
    "after_each_task": _list_of(_object({"average_accuracy": _ACCURACY}, _SUMMARY)),
}
_BEFORE = _or_none(_list_of(_ACCURACY))
"""The accuracy on each test set before its task was learned."""
_CONFIG = _object(
    {
        "seed": _whole(-_LARGEST),
        "data": _object(
            {"shuffle_classes": _YES_OR_NO}, {"class_seed": _or_none(_whole())}, others=True
        ),
    },
    others=True,
)
"""Of the settings, only those that a table depends on: the whole is `Experiment.from_json`'s."""
_RESULT = _object(
    {
        "schema": _whole(1, SCHEMA),
        "method": _TEXT,
        "config": _CONFIG,
        "weights": _object({"sha256": _or_none(_TEXT)}, others=True),
        "stream": _object(
            {
                "name": _TEXT,
                "class_order": _list_of(_list_of(_whole())),
                "sha256": _TEXT,
            },
            {"class_names": _list_of(_TEXT), "images_sha256": _TEXT, "split": _ANYTHING},
        ),
        "parameters": _object({"trainable": _whole()}, {"total": _whole()}),
        "tasks_done": _whole(),
        **_MATRIX,
        **{name: _SUMMARY[name] for name in ("average_accuracy", "forgetting")},
    },
    {
        **_SUMMARY,
        "source": _object(
            {"version": _TEXT, "sha256": _TEXT},
            {"commit": _or_none(_TEXT), "dirty": _or_none(_YES_OR_NO)},
        ),
        "versions": _mapping_to(_TEXT),
        "platform": _mapping_to(_ANYTHING),
        "evaluation": _object({}, {"classes": _TEXT, "every": _whole(1)}, others=True),
        "effective_learning_rate": _RATE,
        "memory_bytes": _whole(),
        "accuracy_before": _BEFORE,
        "beside": _mapping_to(_object(_MATRIX, {**_SUMMARY, "accuracy_before": _BEFORE})),
        "test_examples": _or_none(_list_of(_whole(1, _MOST_IMAGES))),
        "trained_sha256": _TEXT,
        "compiles": _mapping_to(_whole()),
        "skipped_steps": _whole(),
        "prompt_usage": _list_of(_list_of(_whole())),
        "timing": _object({}, dict.fromkeys(_TIMES, _SECONDS) | {"images_per_second": _RATE}),
    },
)
