"""What every method must pass. Yours too, wherever it is:

python -m pytest -m '' tests/test_contract.py --method FILE:CLASS -k CLASS
"""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import data
from promptax.core.settings import Optimizer
from promptax.core.sharding import make_mesh
from promptax.core.types import Position
from promptax.methods import L2P, DualPrompt
from promptax.runs.checkpoint import Checkpoints
from promptax.runs.experiment import METHODS, Experiment
from promptax.training.evaluate import Evaluator
from promptax.training.loop import empty_matrices, run_stages
from promptax.training.train import Trainer

FAST = {"own", "derpp"}
"""One without a memory, and one with a buffer; the others are slow together."""
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow][name in FAST :]) for name in toy.EVERY]
)


def create(name, stream, mesh, recipe=None):
    method = toy.EVERY[name]
    recipe = toy.recipe_for(method) if recipe is None else recipe
    return Trainer.create(
        method, toy.make_vit(), toy.CLASSES, recipe, stream=stream, mesh=mesh, key=jr.key(0)
    )


def stream_of(name, stream=None):
    return toy.EVERY[name].stream(toy.make_stream() if stream is None else stream)


def test_every_method_of_the_command_line_is_here():
    assert {type(method) for method in toy.EVERY.values()} >= set(METHODS.values())


@EVERY
def test_one_compile_serves_tasks_of_any_size(fitted, name):
    method = toy.EVERY[name]
    counts = fitted(name).compiles.count
    wanted = {"train": int(method.steps), "observe": int(method.observes)}
    assert {kind: counts[kind] for kind in wanted} == wanted
    assert (counts["evaluate"], counts["query"]) == (1, 1)


@EVERY
def test_memory_has_the_size_that_was_declared_and_frozen_leaves_keep_their_bits(fitted, name):
    run, shape = fitted(name), jax.eval_shape
    declared = shape(lambda: run.trainer.method.memory(run.model, run.evaluator.stream))
    assert shape(lambda: run.start.memory) == shape(lambda: run.end.memory) == declared
    fresh = create(name, run.evaluator.stream, run.trainer.mesh)[0]
    assert jax.tree.structure(fresh.frozen) == jax.tree.structure(run.trainer.frozen)
    if jax.tree.leaves(fresh.frozen):
        assert toy.same_bits(fresh.frozen, run.trainer.frozen)
    assert run.trainer.method.steps or not jax.tree.leaves(run.start.opt_state)[1:]


class Watched:
    """A source that notes which examples are read."""

    def __init__(self, source):
        self.source, self.labels, self.read = source, source.labels, []

    def __getitem__(self, index):
        self.read.append(index)
        return self.source[index]


@EVERY
def test_a_killed_run_goes_on_to_the_same_bits_and_reads_no_earlier_example(
    fitted, mesh, tmp_path, name
):
    whole = fitted(name)
    stream = whole.evaluator.stream
    if len(stream.stages) == 1:
        pytest.skip("one task")
    checkpoints = Checkpoints(tmp_path)
    trainer, state = create(name, stream, mesh)
    evaluator = Evaluator(trainer, stream)
    for end in run_stages(evaluator, state, empty_matrices(evaluator), seed=0):
        checkpoints.save(Position(1), end.state, {})
        break
    watched = Watched(stream.train)
    trainer, like = create(name, stream, mesh)
    restored = checkpoints.restore(like)
    assert restored is not None
    watched.read.clear()
    evaluator = Evaluator(trainer, replace(stream, train=watched))
    ends = list(
        run_stages(evaluator, restored[0], empty_matrices(evaluator), seed=0, start=Position(1))
    )
    assert toy.same_bits(ends[-1].state, whole.end)
    read, earlier = np.concatenate(watched.read), stream.stages[0].index
    assert len(read)
    assert not np.isin(read, earlier).any()


@EVERY
def test_a_loaded_learner_predicts_what_was_measured(fitted, name):
    run = fitted(name)
    stream, learner = run.evaluator.stream, run.learner
    assert learner is not None
    images = stream.test[np.concatenate([task.index for task in stream.tasks])]
    guess = jnp.where(learner.seen, learner(images), -jnp.inf).argmax(1)
    assert np.array_equal(guess, np.concatenate(run.evaluations[-1].predicted))


@pytest.mark.slow
@EVERY
def test_accuracy_does_not_depend_on_the_evaluation_batch(fitted, name):
    run = fitted(name)
    protocol = replace(run.trainer.recipe.protocol, batch_size=5, vote_group=None)
    trainer = replace(run.trainer, recipe=replace(run.trainer.recipe, protocol=protocol))
    stage = len(run.evaluator.stream.stages) - 1
    again = Evaluator(trainer, run.evaluator.stream)(run.params[-1], stage)
    for ours, theirs in zip(again.predicted, run.evaluations[-1].predicted, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
@EVERY
def test_eight_devices_learn_what_one_learns(name):
    """Losses of steps of two tasks, memory, and what a closed form gives. With plain gradient
    descent, since Adam makes steps of the rounding errors of a gradient that is zero."""

    def outcome(devices):
        stream = stream_of(name)
        plain = Optimizer("sgd", 0.1, momentum=0.0)
        recipe = replace(toy.recipe_for(toy.EVERY[name]), optimizer=plain)
        trainer, state = create(name, stream, make_mesh(devices), recipe)
        losses = []
        for stage in range(len(stream.stages))[:2]:
            task = trainer.task(stream, stage)
            state = trainer.begin_task(state, task)
            for batch, _ in zip(trainer.batches(stream, stage, seed=0), range(3), strict=False):
                state, metrics = trainer.step(state, batch, task)
                losses.append(metrics.loss)
            state = trainer.end_task(trainer.observe(state, stream, stage), task)
        return losses, state.memory, () if trainer.method.steps else state.params

    one, eight = outcome(1), outcome(8)
    for ours, theirs in zip(*(jax.tree.leaves(out) for out in (one, eight)), strict=True):
        # Sums of thousands of products, in another order.
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)


def in_domains():
    """Two domains of all classes, the second with its colours inverted."""
    stream = toy.make_stream()

    def both(source):
        images = source[np.arange(len(source.labels))]
        images, labels = np.concatenate([images, 255 - images]), np.tile(source.labels, 2)
        return data.ArraySource(images, labels), np.repeat([0, 1], len(source.labels))

    (train, train_domains), (test, test_domains) = both(stream.train), both(stream.test)
    names = {"domain_names": ["plain", "inverted"], "class_names": stream.class_names}
    return data.domain_incremental(train, test, (train_domains, test_domains), **names)


@pytest.mark.slow
@EVERY
def test_domains_are_learned_one_after_another(mesh, name):
    last = toy.run(toy.EVERY[name], mesh, stream=in_domains()).matrices["instance"].values[-1]
    assert last[-1] > 2 / toy.CLASSES


@pytest.mark.slow
@EVERY
def test_a_task_may_have_one_class(mesh, name):
    """First and last; where only the task's classes compete, nothing can be learned of it."""
    stream = toy.make_stream()
    tasks = ((0,), (1, 2, 3, 4, 5), (6,))
    stream = data.class_incremental(stream.train, stream.test, tasks=tasks)
    run = toy.run(toy.EVERY[name], mesh, stream=stream)
    assert np.isfinite(run.losses).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params[-1]))
    learned = run.matrices["instance"].values[-1 if name == "joint" else 1, 1]
    assert learned > 2 / toy.CLASSES


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_the_config_file(name):
    kind = METHODS[name]
    replay = toy.REPLAY if {f.name for f in dataclasses.fields(kind)} >= {"replay"} else None
    method = kind() if replay is None else kind(replay=replay)  # pyright: ignore[reportCallIssue]
    experiment = Experiment(method)
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize("kind", [L2P, DualPrompt])
def test_prompts_replay_old_classes_only_if_asked(kind):
    task = replace(toy.make_task(1), seen=jnp.ones(7, bool))
    assert kind().competing(task) is task.classes
    assert kind(replay=toy.REPLAY).competing(task) is task.seen
    assert kind().memory(None, toy.make_stream()) is None
