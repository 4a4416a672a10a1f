"""Load a learner, from the folder of a run or from a file of its own."""

from pathlib import Path

from promptax.core.errors import UserError
from promptax.methods.base import AbstractMethod
from promptax.runs import opening
from promptax.runs.folder import RunFolder
from promptax.runs.outline import Outline
from promptax.training.learner import Learner
from promptax.training.saved import load_tree


def load(
    path: str | Path,
    *,
    method: type[AbstractMethod] | None = None,
    weights: str | Path | None = None,
) -> Learner:
    """Load a learner: `learner(images)` gives logits, and `learner.classify(images)` names.

    Args:
        path: The folder of a run, whose last finished task is loaded; or a file that
            `learner.save` wrote.
        method: The class of the method, if it is not part of the package. No code is run that a
            folder or a file names.
        weights: The file of the frozen weights beneath a run, if it is no longer where it was. A
            file of `learner.save` has them in it.

    Raises:
        UserError: There is no run and no learner, none of the run's tasks is finished, the method
            is not known, or the weights of the run were not found.
    """
    path = Path(path)
    kept = RunFolder(path).learner
    if kept.is_file():
        path = kept
    if not path.is_file():
        return opening.load(path, method=method, weights=weights)
    learner = load_tree(path, classes=() if method is None else (method,))
    if not isinstance(learner, Learner):
        raise UserError(f"'{path}' holds a {type(learner).__name__}, not a learner.")
    return learner


def recorded_image_shape(path: Path) -> tuple[int, int, int] | None:
    """Height, width and channels of the images that a run was trained on.

    None for a file of `learner.save` and for runs of versions before 0.3, which record no shape.

    Raises:
        UserError: There is no run, or none of its tasks is finished.
    """
    if path.is_file():
        return None
    record = opening.last_finished(RunFolder(path)).record
    if "outline" not in record:
        return None
    height, width, channels = Outline.from_json(record["outline"]["stream"]).image_shape
    return height, width, channels
