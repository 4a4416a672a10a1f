"""Notices before a run trains: settings that are allowed, but may surprise the user."""

from collections.abc import Iterator

from promptax.data.stream import TaskStream
from promptax.methods.registry import builtin_methods
from promptax.methods.rehearsal import AbstractRehearsal
from promptax.runs.experiment import Session
from promptax.runs.preprocessing import remarks


def notices(session: Session) -> Iterator[str]:
    """Look for surprises in an experiment, and describe each in a sentence or two."""
    experiment = session.experiment
    yield from remarks(experiment.recipe.images, session.weights.get("images", {}))
    if session.trainer.takes_steps:
        yield from _without_competitors(session)
    else:
        yield (
            f"{experiment.label} takes no training steps: optimizer, epochs and class mask have no "
            "effect."
        )


def _without_competitors(session: Session) -> Iterator[str]:
    """Tasks that train nothing, because the loss of a single competing class is always 0."""
    stream = session.stream
    recipe = session.experiment.recipe
    if recipe.class_mask == "none":
        return
    earlier = recipe.class_mask == "seen" or isinstance(session.trainer.method, AbstractRehearsal)
    trained = [n for n in range(len(stream.tasks)) if session.trainer.trains(n)]
    alone = [n for n in trained if _competing(stream, n, earlier=earlier) == 1]
    if not alone:
        return
    task = stream.tasks[alone[0]]
    name = stream.class_names[task.classes[0]]
    found = (
        f"warning: in {len(alone)} of {len(stream.tasks)} tasks only one class competes in "
        f"training (the first is '{task.name}' with class '{name}'), so their cross-entropy is "
        "always 0 and trains nothing"
    )
    if earlier:
        yield f"{found}."
        return
    no_loss = ", ".join(
        name for name, kind in builtin_methods().items() if kind.loss is None or kind.trains
    )
    yield (
        f"{found}. Let the classes of earlier tasks compete with --class-mask seen, replay images "
        f"with --buffer-size N, or use a method without a loss ({no_loss})."
    )


def _competing(stream: TaskStream, task_number: int, *, earlier: bool) -> int:
    """The number of classes that compete in a task: its own or, with `earlier`, all so far."""
    if earlier and task_number:
        return len(set(stream.tasks[0].classes) | set(stream.tasks[task_number].classes))
    return len(stream.tasks[task_number].classes)
