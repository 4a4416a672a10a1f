"""Evaluation: what is scored, under which protocol, and that nothing depends on the batch."""

from collections import Counter
from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import UserError, data, nn
from promptax.core.settings import Evaluation
from promptax.core.sharding import make_mesh, replicate
from promptax.training.evaluate import Evaluator
from promptax.training.loop import make_learner

SOME = pytest.mark.parametrize("name", toy.slow_except(["l2p", "linear"], toy.METHODS))
"""Every method, but only one with prompts and one without them in the fast suite."""


def with_protocol(trainer, **settings):
    return replace(trainer, recipe=replace(trainer.recipe, evaluation=Evaluation(**settings)))


def allowed(classes):
    return np.isin(np.arange(toy.CLASSES), list(classes))


def logits_of(run, task):
    """Of the final model for all test images of a task, through the learner."""
    stream = run.evaluator.stream
    return np.asarray(run.learner(stream.test[np.arange(27)]))[stream.test_sets[task].index]


@pytest.fixture(scope="module")
def mixed(fitted):
    """A state of L2P in which images choose different prompts, and these matter."""
    run = fitted("l2p")
    state = run.states[-1]
    images = run.evaluator.stream.test[np.arange(27)].astype(np.float32) / 255
    query = eqx.filter_jit(run.model.query)(images)
    parts = lambda params: (params.pool.key, params.pool.prompt, params.head.kernel)
    _, prompt, kernel = (jr.normal(jr.key(0), x.shape) for x in parts(state.params))
    params = eqx.tree_at(parts, state.params, ((query - query.mean(0))[::5], prompt, kernel))
    return replace(state, params=params)


def same(first, second):
    """Whether two evaluations agree in every prediction and prompt."""
    pairs = zip(first.predicted + first.selected, second.predicted + second.selected, strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", toy.slow_except(["l2p"], ["l2p", "linear"]))
def test_predictions_depend_neither_on_the_batch_nor_on_devices_nor_on_a_vote_beside(
    fitted, mixed, name
):
    run = fitted(name)
    stream, state = run.evaluator.stream, mixed if name == "l2p" else run.states[-1]
    # In batches of 8; for L2P with a vote beside.
    wanted = Evaluator(run.trainer, stream)(state, 2)
    assert len(np.unique(np.concatenate(wanted.predicted))) > 3
    assert name == "linear" or len(np.unique(np.concatenate(wanted.selected))) > 3
    for batch_size, devices in ((1, 1), (7, 1), (64, 1), (8, 8)):
        trainer, mesh = with_protocol(run.trainer, batch_size=batch_size), make_mesh(devices)
        trainer = replace(trainer, setup=replace(replicate(trainer.setup, mesh), mesh=mesh))
        ours = Evaluator(trainer, stream)(replicate(state, mesh), 2)
        assert list(ours.accuracy) == ["instance"]
        assert np.array_equal(ours.accuracy["instance"], wanted.accuracy["instance"])
        assert same(ours, wanted)


@SOME
def test_every_test_image_is_scored_once_for_each_task_seen(fitted, name):
    """Tasks have 7, 12 and 8 test images, so batches of 8 are partial and span tasks."""
    run = fitted(name)
    stream = run.evaluator.stream
    assert len(run.evaluations) == len(stream.tasks)
    for stage, evaluation in enumerate(run.evaluations):
        assert [len(x) for x in evaluation.predicted] == [7, 12, 8][: stage + 1]
        for task, predicted in enumerate(evaluation.predicted):
            hits = predicted == stream.test.labels[stream.test_sets[task].index]
            assert evaluation.accuracy["instance"][task] == hits.mean()
            assert run.matrices["instance"].values[stage, task] == hits.mean()
        assert np.isnan(run.matrices["instance"].values[stage, stage + 1 :]).all()
    assert run.matrices["instance"].values.shape == (3, 3)


def in_three_domains():
    """The toy stream, with all classes in each of three tasks."""
    classes = toy.make_stream()
    domains = [np.arange(len(part.labels)) % 3 for part in (classes.train, classes.test)]
    return data.domain_incremental(
        classes.train,
        classes.test,
        (domains[0], domains[1]),
        domain_names=("sun", "rain", "snow"),
        class_names=classes.class_names,
    )


def test_a_task_with_known_classes_is_measured_before_it_is_learned(fitted, mesh):
    run = toy.run(toy.METHODS["linear"], mesh, stream=in_three_domains())
    stream, matrix = run.evaluator.stream, run.matrices["instance"]
    assert matrix.before is not None
    for stage in (0, 1):
        assert len(run.evaluations[stage].predicted) == stage + 1
        following = stream.test_sets[stage + 1].index
        learner = make_learner(run.trainer, stream, run.states[stage], stage)
        predicted = np.asarray(learner(stream.test[following])).argmax(1)
        right = predicted == stream.test.labels[following]
        expected = dict.fromkeys(("instance", "task_incremental"), float(right.mean()))
        assert run.evaluations[stage].next_task == expected
        assert matrix.before[stage + 1] == right.mean()
    assert run.evaluations[2].next_task is None
    gained = matrix.before[1:].mean() - 1 / toy.CLASSES
    assert gained > 0.1
    assert matrix.forward_transfer == pytest.approx(gained)
    # No method knows a class before its first example, so there is nothing to measure.
    for stage in range(3):
        assert fitted("linear").evaluations[stage].next_task is None
    assert fitted("linear").matrices["instance"].forward_transfer is None


def test_joint_training_is_measured_on_all_tasks(mesh):
    run = toy.run(toy.METHODS["linear"], mesh, stream=toy.make_stream().joint())
    (evaluation,) = run.evaluations
    assert [len(x) for x in evaluation.predicted] == [7, 12, 8]
    assert run.matrices["instance"].values.shape == (1, 3)


@SOME
def test_the_learner_says_what_the_evaluator_counted(fitted, name):
    run = fitted(name)
    for task, predicted in enumerate(run.evaluations[-1].predicted):
        assert np.array_equal(logits_of(run, task).argmax(1), predicted)


@pytest.mark.parametrize("name", toy.slow_except(["l2p"], ["l2p", "finetune"]))
def test_the_task_incremental_column_knows_the_task(fitted, name):
    run = fitted(name)
    for task, split in enumerate(run.evaluator.stream.test_sets):
        scores = np.where(allowed(split.classes), logits_of(run, task), -np.inf)
        accuracy = (scores.argmax(1) == run.evaluator.stream.test.labels[split.index]).mean()
        assert run.evaluations[-1].accuracy["task_incremental"][task] == accuracy


def test_the_vote_column_is_the_published_vote_within_groups_of_a_task(fitted, mixed):
    """Groups of 4 consecutive images of one task; the last one of a task can be smaller."""
    trainer, stream = fitted("l2p").trainer, fitted("l2p").evaluator.stream
    model = trainer.model(mixed)
    pool = model.pool
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    query = eqx.filter_jit(model.query)

    @eqx.filter_jit
    def forced(images, prompt, key):
        only = nn.PromptPool(prompt, key, pool.layers, pool.top_k)
        swapped = eqx.tree_at(lambda model: model.pool, model, only)
        return swapped(images, swapped.query(images)).logits

    voted = np.zeros(27, np.int32)
    for split in stream.test_sets:
        for start in range(0, len(split.index), 4):
            index = split.index[start : start + 4]
            images = stream.test[np.resize(index, 4)].astype(np.float32) / 255
            cosine = (unit(query(images)) @ unit(pool.key).T)[: len(index)]
            ballots = Counter(np.argsort(-cosine, axis=1)[:, : pool.top_k].ravel().tolist())
            won = sorted(range(pool.size), key=lambda i: (-ballots[i], i))[: pool.top_k]
            logits = forced(images, pool.prompt[:, np.asarray(won)], pool.key[np.asarray(won)])
            voted[index] = np.asarray(logits)[: len(index)].argmax(1)
    # With what the vote should predict as the labels, the vote makes no mistake.
    stream = replace(stream, test=data.ArraySource(stream.test[np.arange(27)], voted))
    accuracy = Evaluator(trainer, stream)(mixed, 2).accuracy
    assert accuracy["vote"].tolist() == [1, 1, 1]
    assert (accuracy["instance"] < 1).any()


def test_classes_not_yet_seen_compete_only_if_asked(fitted):
    """Class 6 comes last, and here has the largest logit of all from the start."""
    run = fitted("linear")
    bias = lambda state: state.params.head.bias
    state = eqx.tree_at(bias, run.states[0], bias(run.states[0]).at[6].set(1e3))
    stream = run.evaluator.stream
    evaluators = {
        classes: Evaluator(with_protocol(run.trainer, batch_size=8, classes=classes), stream)
        for classes in ("seen", "all")
    }
    of_stage = lambda stage: {
        classes: evaluator(state, stage).predicted for classes, evaluator in evaluators.items()
    }
    first, last = of_stage(0), of_stage(2)
    assert np.array_equal(first["seen"][0], run.evaluations[0].predicted[0])
    assert (first["all"][0] == 6).all()
    assert all(np.array_equal(*pair) for pair in zip(last["seen"], last["all"], strict=True))


@pytest.mark.parametrize("name", ["l2p", "linear"])
def test_queries_kept_from_earlier_stages_are_still_right(fitted, name):
    run = fitted(name)
    fresh = Evaluator(run.trainer, run.evaluator.stream)(run.states[-1], 2)
    kept = run.evaluator(run.states[-1], 2)
    assert same(fresh, kept)


def test_a_vote_needs_a_pool_and_a_batch_that_it_divides(fitted):
    run = fitted("linear")
    trainer = with_protocol(run.trainer, batch_size=8, vote_group=4)
    with pytest.raises(UserError, match="LinearProbe has no prompt pool, so images cannot vote"):
        Evaluator(trainer, run.evaluator.stream)
    with pytest.raises(UserError, match=r"vote group is 3; expected a divisor of .* size 8"):
        Evaluation(batch_size=8, vote_group=3)
    run = fitted("l2p")
    trainer = replace(run.trainer, setup=replace(run.trainer.setup, mesh=make_mesh(8)))
    trainer = with_protocol(trainer, batch_size=12, vote_group=4)
    with pytest.raises(UserError, match="batch size 12 is not divisible by the 8 devices"):
        Evaluator(trainer, run.evaluator.stream)


def test_a_learner_gives_probabilities_of_the_classes_seen_and_their_names(fitted):
    learner = fitted("linear").learner
    early = eqx.tree_at(lambda learner: learner.seen, learner, jnp.asarray(allowed(range(2))))
    stream = fitted("linear").evaluator.stream
    images = stream.test[np.arange(27)]
    chances = np.asarray(early.probabilities(images))
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    assert not chances[:, 2:].any()
    assert early.classify(images) == [str(i) for i in chances.argmax(1)]


def test_a_learner_takes_grey_and_colour_of_any_size_and_nothing_else(fitted):
    learner = fitted("linear").learner
    grey = np.full((2, 20, 24), 100, np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(learner(grey), learner(colour))
    for wrong in (grey.astype(np.float32), grey[0], np.repeat(grey[..., None], 2, axis=-1)):
        with pytest.raises(UserError, match="a learner takes"):
            learner(wrong)
