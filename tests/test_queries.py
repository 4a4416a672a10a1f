"""Queries of training images that are kept: what an epoch saves, and that nothing else changes."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import methods
from promptax.core.settings import Augment, Optimizer, Schedule
from promptax.core.sharding import make_mesh
from promptax.data.augment import prepare_eval, prepare_train
from promptax.training.loop import StepDone, TaskEnded, run_stream
from promptax.training.query_pass import QueryBatch, training_queries
from promptax.training.trainer import Trainer

FAST = {"l2p"}
NAMED = {**toy.METHODS, **toy.OTHERS}
WITH_QUERY = ["linear", "l2p", "dualprompt", "er", "derpp", "lwf", "ewc", "l2p-r"]


def create(method, mesh, *, images=toy.RECIPE.images, optimizer=None, **schedule):
    recipe = replace(toy.recipe_for(method), images=images)
    # A shape of its own, since other tests count the compilations of theirs.
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, batch_size=16))
    recipe = recipe if optimizer is None else replace(recipe, optimizer=optimizer)
    recipe = replace(recipe, schedule=replace(recipe.schedule, **schedule))
    stream = toy.make_stream()
    return Trainer.create(method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0))


def queries_of(trainer, state, stage):
    """The queries of a task's training images, without the events on the way."""
    pass_over_images = training_queries(trainer, state.params, toy.make_stream(), stage)
    while True:
        try:
            assert isinstance(next(pass_over_images), QueryBatch)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("name", toy.slow_except(FAST, WITH_QUERY))
def test_kept_queries_give_the_run_that_computes_them_in_every_step(mesh, name):
    """With plain gradient descent, since Adam makes steps of the rounding errors of a gradient
    that is zero, as that of a distillation is at first."""

    def outcome(cache_queries):
        optimizer = Optimizer("sgd", 0.1, momentum=0.0)
        trainer, state = create(NAMED[name], mesh, optimizer=optimizer, cache_queries=cache_queries)
        losses, matrices = [], {}
        for event in run_stream(trainer, toy.make_stream(), state, seed=0):
            if isinstance(event, StepDone):
                losses.append(float(event.metrics.loss))
            elif isinstance(event, TaskEnded):
                matrices = event.matrices
        return trainer.keeps_queries, losses, matrices

    (kept, ours, found), (computed, wanted, expected) = (outcome(flag) for flag in (True, False))
    assert (kept, computed) == (True, False)
    assert len(set(wanted)) > 8
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    for protocol, matrix in expected.items():
        np.testing.assert_array_equal(found[protocol].values, matrix.values)


def test_a_batch_comes_with_the_queries_of_its_own_images_in_every_epoch(mesh):
    """The second task, whose last batch is padded."""
    stream = toy.make_stream()
    trainer, state = create(methods.LinearProbe(), mesh)
    queries = queries_of(trainer, state, 1)
    assert queries is not None
    assert queries.shape == (len(stream.tasks[1].index), toy.CONFIG.dim)
    features = eqx.filter_jit(trainer.model(state).features)
    batches = list(trainer.batches(stream, 1, seed=3, queries=queries))
    plain = list(trainer.batches(stream, 1, seed=3))
    assert len(batches) == len(plain) == trainer.steps(stream, 1)
    for batch, bare in zip(batches, plain, strict=True):
        assert bare.query is None
        assert batch.query is not None
        assert np.array_equal(batch.image, bare.image)
        images = prepare_eval(batch.image, trainer.recipe.images)
        np.testing.assert_allclose(batch.query, features(images), rtol=1e-5, atol=1e-5)


def test_the_step_runs_no_backbone_where_the_query_is_the_feature(mesh):
    """Images do not matter any more."""
    random = np.random.default_rng(0)
    trainer, state = create(methods.LinearProbe(), mesh)
    batch = toy.make_batch(random)
    query = jnp.asarray(random.normal(size=(16, toy.CONFIG.dim)), jnp.float32)
    one, other = (
        replace(batch, image=image, query=query) for image in (batch.image, 255 - batch.image)
    )
    after = [trainer.step(toy.copy(state), each, toy.make_task())[0] for each in (one, other)]
    assert toy.same_bits(*after)
    assert not toy.same_bits(after[0].params, state.params)


class Recorder(methods.LinearProbe):
    """Keeps the queries that its loss is given in its state."""

    rows: int = 0

    def init(self, backbone, stream, *, key) -> Any:
        model, _ = super().init(backbone, stream, key=key)
        return model, jnp.zeros((self.rows, backbone.dim))

    def loss(self, model, state, batch, task, *, key):
        loss, (logits, _) = super().loss(model, None, batch, task, key=key)
        return loss, (logits, batch.query)


def test_queries_are_computed_for_replayed_images_and_taken_as_given_for_all_others(mesh):
    known, replayed = 16, toy.REPLAY.replay_batch
    method = methods.Rehearsal(Recorder(known + replayed), toy.REPLAY)
    trainer, state = create(method, mesh)
    random, task = np.random.default_rng(0), toy.make_task()
    # The first step fills the buffer, from which the second one draws.
    state, _ = trainer.step(state, toy.make_batch(random), task)
    stored = state.method_state.buffer.image[:known]
    features = trainer.model(state).features(prepare_eval(stored, trainer.recipe.images))
    batch = replace(toy.make_batch(random), query=jnp.full((known, toy.CONFIG.dim), 7.0))
    state, _ = trainer.step(state, batch, task)
    given, computed = np.split(np.asarray(state.method_state.inner), [known])
    assert (given == 7).all()
    nearest = np.abs(computed[:, None] - np.asarray(features)).max(-1).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-5)


FIXED = toy.RECIPE.images
CHANGES = {
    "crop": {"crop_area": (0.5, 1.0)},
    "flip": {"flip": True},
    "operations": {"augment": Augment(operations=1)},
    "brightness": {"augment": Augment(brightness=0.2)},
    "contrast": {"augment": Augment(contrast=0.2)},
    "saturation": {"augment": Augment(saturation=0.2)},
    "hue": {"augment": Augment(hue=0.1)},
    "erase": {"augment": Augment(erase=0.5)},
    "mixup": {"augment": Augment(mixup=0.8)},
    "cutmix": {"augment": Augment(cutmix=1.0)},
}


def test_fixed_images_are_trained_on_as_they_are_evaluated():
    assert FIXED.fixed
    images = toy.make_batch(np.random.default_rng(0)).image
    ours = prepare_train(images, FIXED, jr.key(0))
    assert np.array_equal(ours, prepare_eval(images, FIXED))


@pytest.mark.parametrize("change", CHANGES)
def test_queries_are_not_kept_where_augmentation_changes_the_images(mesh, change):
    images = replace(FIXED, **CHANGES[change])
    assert not images.fixed
    trainer, state = create(methods.LinearProbe(), mesh, images=images)
    assert not trainer.keeps_queries
    assert queries_of(trainer, state, 0) is None


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        (methods.LinearProbe(), Schedule(1, 16)),
        (methods.LinearProbe(), Schedule(3, 16, cache_queries=False)),
        (methods.Finetune(), Schedule(3, 16)),
        (methods.NCM(), Schedule(3, 16)),
        (toy.Pixels(), Schedule(3, 16)),
    ],
)
def test_queries_are_not_kept_where_nothing_is_gained(mesh, method, schedule):
    trainer, _ = create(method, mesh, **vars(schedule))
    assert not trainer.keeps_queries


@pytest.mark.slow
def test_eight_devices_keep_the_queries_of_one():
    """In an evaluation batch that does not divide over them."""

    def queries(devices):
        trainer, state = create(toy.METHODS["l2p"], make_mesh(devices))
        evaluation = replace(trainer.recipe.evaluation, batch_size=9, vote_group=None)
        trainer = replace(trainer, recipe=replace(trainer.recipe, evaluation=evaluation))
        return queries_of(trainer, state, 2)

    one, eight = queries(1), queries(8)
    assert one is not None
    assert eight is not None
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)


def test_a_run_can_stop_between_batches_of_the_query_pass(mesh):
    """Each batch is an event, so that a signal is heard and the state is still whole."""
    trainer, state = create(methods.LinearProbe(), mesh)
    events = training_queries(trainer, state.params, toy.make_stream(), 0)
    assert all(isinstance(next(events), QueryBatch) for _ in range(2))
    events.close()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
