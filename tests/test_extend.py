"""Going on from a finished run with new classes."""

import dataclasses
import json

import jax
import jax.random as jr
import numpy as np
import pytest
import toy

import promptax
from promptax import UserError, data
from promptax.cli import main
from promptax.core.settings import Replay
from promptax.data.extension import extended
from promptax.methods.components.growth import for_longer_stream
from promptax.methods.hide import HiDePrompt
from promptax.runs.extend import _grown_matrix, grown_state
from promptax.training.evaluate import Evaluator
from promptax.training.loop import make_learner
from promptax.training.metrics import AccuracyMatrix
from promptax.training.trainer import Trainer

BLACK = np.zeros((2, 8, 8), np.uint8)


def part(classes, *, names=None, seed=0, size=16):
    """A stream of some classes of the toy patterns, in one task."""
    whole = toy.make_stream()
    sources = []
    for source in (whole.train, whole.test):
        rows = np.flatnonzero(np.isin(source.labels, classes))
        images = source[rows][:, :size, :size]
        sources.append(data.ArraySource(images, source.labels[rows] - min(classes)))
    return data.class_incremental(
        *sources, num_tasks=1, class_names=names, name=f"part-{min(classes)}"
    )


def test_the_classes_of_a_second_stream_follow_those_of_the_first():
    first = part((0, 1, 2))
    second = part((3, 4), size=12)
    both = extended(first, second)
    assert both.class_names == ("0", "1", "2", "3", "4")
    assert [task.classes for task in both.tasks] == [(0, 1, 2), (3, 4)]
    assert both.seen(1) == (0, 1, 2, 3, 4)
    for source, splits in ((both.train, both.tasks), (both.test, both.test_sets)):
        for split in splits:
            assert set(source.labels[split.index]) == set(split.classes)
    np.testing.assert_array_equal(
        both.train[both.tasks[0].index], first.train[first.tasks[0].index]
    )
    assert both.train[both.tasks[1].index].shape[1:] == (16, 16, 3)


def test_a_name_that_comes_again_is_refused():
    first = part((0, 1), names=("ant", "bee"))
    with pytest.raises(UserError, match="class 'bee' of part-2 is already in part-0"):
        extended(first, part((2, 3), names=("bee", "cat")))
    assert extended(first, part((2, 3), names=("cat", "dog"))).class_names[2:] == ("cat", "dog")


OFTEN = ("linear",)
EXTENDABLE = [
    name
    for name, method in toy.EVERY.items()
    if not isinstance(method, HiDePrompt) and name not in ("er", "derpp", "l2p-r")
]


@pytest.mark.parametrize("name", toy.slow_except(OFTEN, EXTENDABLE))
def test_a_grown_state_answers_as_before_on_what_it_knows(name, mesh):
    """The head, the pool, statistics and masks grow; the logits of old classes do not change.

    Sums over more components or experts are rounded in another order.
    """
    method = toy.EVERY[name]
    first = toy.make_stream().first(2)
    first = dataclasses.replace(first, class_names=first.class_names[:5])
    longer = toy.make_stream()
    fitted = toy.run(method, mesh, stream=first)
    method = for_longer_stream(method, 2, 3)
    recipe = toy.recipe_for(method)
    trainer, start = Trainer.create(
        method, toy.make_vit(), longer, recipe, mesh=mesh, key=jr.key(0)
    )
    state = grown_state(fitted.states[-1], start)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, start
    )
    grown = make_learner(trainer, longer, state, 1)
    images = longer.test[np.arange(8)]
    assert fitted.learner is not None
    before = np.asarray(fitted.learner(images))
    np.testing.assert_allclose(np.asarray(grown(images))[:, :5], before, rtol=1e-5, atol=1e-5)
    assert grown.seen.tolist() == [True] * 5 + [False] * 2
    measured = Evaluator(trainer, longer)(state, 1)
    for old, new in zip(fitted.evaluations[-1].predicted, measured.predicted, strict=True):
        np.testing.assert_array_equal(old, new)


def test_states_of_another_model_do_not_grow(mesh):
    stream = toy.make_stream()
    make = lambda method: Trainer.create(
        method, toy.make_vit(), stream, toy.RECIPE, mesh=mesh, key=jr.key(0)
    )[1]
    small = make(toy.METHODS["l2p"])
    with pytest.raises(UserError, match="another model"):
        grown_state(small, make(toy.METHODS["linear"]))
    longer = dataclasses.replace(toy.METHODS["l2p"], prompt_length=1)
    with pytest.raises(UserError, match="cannot grow to"):
        grown_state(small, make(longer))


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Two more classes for the runs on tiny files."""
    folder = tmp_path_factory.mktemp("more")
    random = np.random.default_rng(1)
    for name, each in (("new-train", 8), ("new-test", 3)):
        labels = np.repeat(np.arange(2), each)
        images = random.integers(100, 250, (len(labels), 16, 16), np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    return [
        "--data.train",
        str(folder / "new-train.npz"),
        "--data.test",
        str(folder / "new-test.npz"),
    ]


def test_a_finished_run_goes_on_with_new_classes_and_keeps_its_history(
    trained, more, tmp_path, capsys
):
    folder = tmp_path / "longer"
    argv = ["train", "--extend", str(trained), *more, "--data.tasks", "1", "--run", str(folder)]
    before = json.loads((trained / "result.json").read_text())
    assert main(argv) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == before["method"]
    assert result["tasks_done"] == 4
    assert result["stream"]["class_names"] == list("01234567")
    assert result["stream"]["class_order"] == [*before["stream"]["class_order"], [6, 7]]
    rows = [row[:3] for row in result["accuracy_matrix"][:3]]
    assert rows == before["accuracy_matrix"]
    assert result["after_each_task"][:3] == before["after_each_task"]
    assert result["config"]["extends"] == str(trained)
    learner = promptax.load(folder)
    assert learner.class_names == tuple("01234567")
    assert bool(learner.seen.all())
    # The linear probe masks old classes, so what it learned of them has not moved.
    old = np.asarray(promptax.load(trained)(BLACK))
    np.testing.assert_array_equal(np.asarray(learner(BLACK))[:, :6], old)
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    assert main([*argv, "--resume"]) == 0
    assert main(["reproduce", str(folder)]) == 2
    assert f"goes on from '{trained}'" in capsys.readouterr().err


def test_accuracies_before_a_task_are_kept_and_those_of_new_tasks_are_unknown():
    old = AccuracyMatrix.empty(2, 2, classes=2).with_row(0, np.array([0.9])).with_next(0, 0.7)
    old = old.with_row(1, np.array([0.8, 0.9]))
    grown = _grown_matrix(old, AccuracyMatrix.empty(3, 3, classes=2))
    assert grown.before is not None
    assert np.array_equal(grown.before, [np.nan, 0.7, np.nan], equal_nan=True)
    assert grown.after(2).forward_transfer == pytest.approx(0.2)
    assert grown.with_row(2, np.array([0.8, 0.9, 0.7])).forward_transfer is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--extend RUN", "--extend needs the data of the new classes"),
        ("l2p --extend RUN MORE", "trained with the method 'linear', but L2P was given"),
        ("--extend RUN MORE --preset split-glyphs-l2p", "leave out --preset"),
        ("--extend RUN MORE --seed 3", "has seed 0: go on with the same one"),
        ("--extend RUN MORE --seeds 0 1", "leave out --seeds"),
        ("--extend RUN MORE --data.joint", "joint training cannot be extended"),
        ("--extend RUN MORE --buffer-size 9", "has another replay buffer"),
        ("--extend none MORE", "'none' is not a run folder"),
    ],
)
def test_what_cannot_be_extended_is_refused(flags, says, trained, more, tmp_path, capsys):
    words = flags.replace("RUN", str(trained)).split()
    at = words.index("MORE") if "MORE" in words else len(words)
    argv = [*words[:at], *(more if "MORE" in words else []), *words[at + 1 :]]
    assert main(["train", *argv, "--data.tasks", "1", "--run", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert len(printed.splitlines()) <= 2


def test_new_classes_get_slots_behind_those_of_old_ones_in_a_buffer_per_class(mesh):
    method = dataclasses.replace(
        toy.OTHERS["er"],
        replay=Replay(buffer_size=4, buffer_per_class=True, buffer_kind="ring", replay_batch=4),
    )
    first = toy.make_stream().first(2)
    first = dataclasses.replace(first, class_names=first.class_names[:5])
    make = lambda stream: Trainer.create(
        method, toy.make_vit(), stream, toy.RECIPE, mesh=mesh, key=jr.key(0)
    )[1]
    old = make(first)
    old = dataclasses.replace(
        old,
        method_state=jax.tree.map(lambda leaf: leaf + 1, old.method_state),
    )
    buffer = grown_state(old, make(toy.make_stream())).method_state.buffer
    assert buffer.label.shape == (28,)
    assert buffer.offered.tolist() == [1] * 5 + [0] * 2
    assert buffer.quota == 4
    assert buffer.label.tolist() == [1] * 20 + [0] * 8
