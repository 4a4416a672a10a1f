"""What every method must pass. Yours too, wherever it is:

python -m pytest -m '' tests/test_contract.py --method FILE:CLASS -k CLASS
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import data
from promptax.core.settings import Optimizer
from promptax.core.sharding import make_mesh
from promptax.methods import L2P, DualPrompt, Rehearsal
from promptax.methods.registry import builtin_methods
from promptax.methods.rehearsal import AbstractRehearsal, can_be_rehearsed
from promptax.runs.checkpoint import Checkpoints
from promptax.runs.experiment import Experiment
from promptax.training.evaluate import Evaluator
from promptax.training.loop import TaskEnded, run_stream
from promptax.training.position import START, StreamPosition
from promptax.training.trainer import Trainer

FAST = {"own", "derpp"}
"""One without a state, and one with a buffer; the others are slow together."""
EVERY = pytest.mark.parametrize("name", toy.slow_except(FAST, toy.EVERY))


def create(name, stream, mesh, recipe=None):
    method = toy.EVERY[name]
    recipe = toy.recipe_for(method) if recipe is None else recipe
    return Trainer.create(method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0))


def ends_of(evaluator, state, start=START):
    """The ends of all tasks, as they come."""
    trainer = evaluator.trainer
    events = run_stream(trainer, evaluator.stream, state, seed=0, start=start, evaluator=evaluator)
    return (event for event in events if isinstance(event, TaskEnded))


def test_every_method_of_the_command_line_is_here():
    assert {type(method) for method in toy.EVERY.values()} >= set(builtin_methods().values())


@EVERY
def test_one_compile_serves_tasks_of_any_size(fitted, name):
    method = toy.EVERY[name]
    counts = fitted(name).compiles.count
    wanted = {"train": method.loss is not None, "observe": method.observe is not None}
    assert {kind: counts[kind] for kind in wanted} == wanted
    assert (counts["evaluate"], counts["query"]) == (1, 1)


@EVERY
def test_the_state_keeps_its_size_and_frozen_leaves_keep_their_bits(fitted, name):
    run, shape = fitted(name), jax.eval_shape
    stream = run.evaluator.stream
    declared = shape(lambda: toy.EVERY[name].init(toy.make_vit(), stream, key=jr.key(0))[1])
    for state in (run.start, *run.states):
        assert shape(lambda state=state: state.method_state) == declared
    fresh = create(name, stream, run.trainer.mesh)[0].setup.frozen
    ours = run.trainer.setup.frozen
    assert jax.tree.structure(fresh) == jax.tree.structure(ours)
    if jax.tree.leaves(fresh):
        assert toy.same_bits(fresh, ours)
    assert run.trainer.takes_steps or not jax.tree.leaves(run.start.opt_state)[1:]


@EVERY
def test_a_gradient_trains_every_leaf_that_counts_as_trained(fitted, name):
    """By Adam's second moments: what a hook writes has none."""
    run = fitted(name)
    leaves = jax.tree.leaves(run.start.params)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert bool(leaves) == run.trainer.takes_steps
    assert size(run.start.opt_state) == 2 * size(leaves) + 1
    trained = [[leaf.any() for leaf in jax.tree.leaves(s.opt_state.nu)] for s in run.states]
    assert np.any(trained, axis=0).all()


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
    checkpoints = Checkpoints(tmp_path)
    trainer, state = create(name, stream, mesh)
    evaluator = Evaluator(trainer, stream)
    checkpoints.save(StreamPosition(1), next(ends_of(evaluator, state)).state, {})
    watched = Watched(stream.train)
    trainer, like = create(name, stream, mesh)
    restored = checkpoints.restore(like)
    assert restored is not None
    watched.read.clear()
    evaluator = Evaluator(trainer, replace(stream, train=watched))
    ends = list(ends_of(evaluator, restored[0], StreamPosition(1)))
    assert toy.same_bits(ends[-1].state, whole.end)
    read, earlier = np.concatenate(watched.read), stream.tasks[0].index
    assert len(read)
    assert not np.isin(read, earlier).any()


@EVERY
def test_a_loaded_learner_predicts_what_was_measured(fitted, name):
    run = fitted(name)
    stream, learner = run.evaluator.stream, run.learner
    assert learner is not None
    images = stream.test[np.concatenate([task.index for task in stream.test_sets])]
    guess = jnp.where(learner.seen, learner(images), -jnp.inf).argmax(1)
    assert np.array_equal(guess, np.concatenate(run.evaluations[-1].predicted))


@pytest.mark.slow
@EVERY
def test_accuracy_does_not_depend_on_the_evaluation_batch(fitted, name):
    run = fitted(name)
    evaluation = replace(run.trainer.recipe.evaluation, batch_size=5, vote_group=None)
    trainer = replace(run.trainer, recipe=replace(run.trainer.recipe, evaluation=evaluation))
    stage = len(run.evaluator.stream.tasks) - 1
    again = Evaluator(trainer, run.evaluator.stream)(run.states[-1], stage)
    for ours, theirs in zip(again.predicted, run.evaluations[-1].predicted, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
@EVERY
def test_eight_devices_learn_what_one_learns(name):
    """Losses of steps of two tasks, and the state, in which closed forms have their results. With
    plain gradient descent, since Adam makes steps of the rounding errors of a gradient of zero."""

    def outcome(devices):
        stream = toy.make_stream()
        plain = Optimizer("sgd", 0.1, momentum=0.0)
        recipe = replace(toy.recipe_for(toy.EVERY[name]), optimizer=plain)
        trainer, state = create(name, stream, make_mesh(devices), recipe)
        losses = []
        for stage in range(2):
            task = trainer.task(stream, stage)
            state = trainer.begin_task(state, task)
            for batch, _ in zip(trainer.batches(stream, stage, seed=0), range(3), strict=False):
                state, metrics = trainer.step(state, batch, task)
                losses.append(metrics.loss)
            state = trainer.end_task(trainer.observe(state, stream, stage), task)
        return losses, state.method_state

    one, eight = outcome(1), outcome(8)
    for ours, theirs in zip(*(jax.tree.leaves(out) for out in (one, eight)), strict=True):
        # Sums of thousands of products, in another order. In the solutions of linear systems, such
        # as SLDC's drift, small numbers have errors of the size of those of the largest.
        largest = np.abs(np.asarray(ours)).max(initial=0)
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * largest)


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
    after = (run.end.params, run.end.method_state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert run.matrices["instance"].values[1, 1] > 2 / toy.CLASSES


@pytest.mark.parametrize("name", builtin_methods())
def test_settings_survive_the_config_file(name):
    kind = builtin_methods()[name]
    if issubclass(kind, AbstractRehearsal):
        experiment = Experiment(kind(replay=toy.REPLAY))  # pyright: ignore[reportCallIssue]
    elif can_be_rehearsed(kind):
        experiment = Experiment(kind(), replay=toy.REPLAY)
        assert experiment.learner() == Rehearsal(kind(), toy.REPLAY)
    else:
        experiment = Experiment(kind())
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize("kind", toy.slow_except([L2P], [L2P, DualPrompt]))
def test_prompts_replay_old_classes_only_if_asked(kind):
    """The loss of a head of zeros is the logarithm of the number of classes that compete."""
    method = replace(toy.METHODS[kind.__name__.lower()], pull=0.0, vote_group=None)
    task = replace(toy.make_task(1), seen=jnp.ones(toy.CLASSES, bool))
    batch = toy.make_batch(np.random.default_rng(0), 12)
    for asked, competing in ((method, 2), (Rehearsal(method, toy.REPLAY), toy.CLASSES)):
        model, state = asked.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
        assert (state is None) == (asked is method)
        inputs = (model, state, toy.prepared(batch, asked, model), task)
        loss, _ = eqx.filter_jit(asked.loss)(*inputs, key=jr.key(0))
        np.testing.assert_allclose(loss, np.log(competing), rtol=1e-6)
