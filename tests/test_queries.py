"""Queries of training images that are kept: what an epoch saves, and that nothing else changes."""

from dataclasses import replace

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
from promptax.training.evaluate import Evaluator
from promptax.training.loop import empty_matrices, run_stages
from promptax.training.queries import training_queries
from promptax.training.train import Trainer

FAST = {"l2p"}
NAMED = {**toy.METHODS, **toy.OTHERS}
WITH_QUERY = ["linear", "l2p", "dualprompt", "joint", "er", "derpp", "lwf", "ewc", "l2p-r"]


def create(method, mesh, *, stream=None, images=toy.RECIPE.images, optimizer=None, **schedule):
    recipe = replace(toy.recipe_for(method), images=images)
    # A shape of its own, since other tests count the compilations of theirs.
    recipe = replace(recipe, protocol=replace(recipe.protocol, batch_size=16))
    recipe = recipe if optimizer is None else replace(recipe, optimizer=optimizer)
    recipe = replace(recipe, schedule=replace(recipe.schedule, **schedule))
    stream = toy.make_stream() if stream is None else stream
    return Trainer.create(
        method, toy.make_vit(), toy.CLASSES, recipe, stream=stream, mesh=mesh, key=jr.key(0)
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow][name in FAST :]) for name in WITH_QUERY]
)
def test_kept_queries_give_the_run_that_computes_them_in_every_step(mesh, name):
    """With plain gradient descent, since Adam makes steps of the rounding errors of a gradient
    that is zero, as that of a distillation is at first."""

    def outcome(cache_queries):
        stream = NAMED[name].stream(toy.make_stream())
        options = {"stream": stream, "optimizer": Optimizer("sgd", 0.1, momentum=0.0)}
        trainer, state = create(NAMED[name], mesh, cache_queries=cache_queries, **options)
        evaluator = Evaluator(trainer, stream)
        losses, matrices = [], empty_matrices(evaluator)
        keep = lambda state, metrics: losses.append(float(metrics.loss))
        for end in run_stages(evaluator, state, matrices, seed=0, on_step=keep):
            matrices = end.matrices
        return trainer.keeps_queries, losses, matrices

    (kept, ours, found), (computed, wanted, expected) = (outcome(flag) for flag in (True, False))
    assert (kept, computed) == (True, False)
    assert len(set(wanted)) > 8
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    for protocol, matrix in expected.items():
        np.testing.assert_array_equal(found[protocol].values, matrix.values)


def test_a_batch_comes_with_the_queries_of_its_own_images_in_every_epoch(mesh):
    """The second task, whose last batch is padded."""
    method, stream = methods.Linear(), toy.make_stream()
    trainer, state = create(method, mesh)
    queries = training_queries(trainer, state.params, stream, 1)
    assert queries is not None
    assert queries.shape == (len(stream.stages[1].index), toy.CONFIG.dim)
    model = trainer.model(state)
    batches = list(trainer.batches(stream, 1, seed=3, queries=queries))
    plain = list(trainer.batches(stream, 1, seed=3))
    assert len(batches) == len(plain) == trainer.steps(len(queries))
    for batch, bare in zip(batches, plain, strict=True):
        assert bare.query is None
        assert batch.query is not None
        assert np.array_equal(batch.image, bare.image)
        images = prepare_eval(batch.image, trainer.recipe.images)
        np.testing.assert_allclose(batch.query, model.features(images), rtol=1e-5, atol=1e-5)


def test_the_step_runs_no_backbone_where_the_query_is_the_feature(mesh):
    """Images do not matter any more."""
    method, random = methods.Linear(), np.random.default_rng(0)
    trainer, state = create(method, mesh)
    batch = toy.make_batch(random)
    query = jnp.asarray(random.normal(size=(16, toy.CONFIG.dim)), jnp.float32)
    one, other = (
        replace(batch, image=image, query=query) for image in (batch.image, 255 - batch.image)
    )
    after = [trainer.step(toy.copy(state), each, toy.make_task())[0] for each in (one, other)]
    assert toy.same_bits(*after)
    assert not toy.same_bits(after[0].params, state.params)


def test_of_a_batch_with_replayed_images_only_those_are_looked_up(mesh):
    method, random = NAMED["l2p-r"], np.random.default_rng(0)
    trainer, state = create(method, mesh)
    model, batch = trainer.model(state), toy.make_batch(random)
    images = prepare_eval(batch.image, trainer.recipe.images)
    given = jnp.full((10, toy.CONFIG.dim), 7.0)
    whole = method.query_of(model, images, replace(batch, query=given))
    assert (whole[:10] == 7).all()
    np.testing.assert_allclose(whole[10:], method.query(model, images)[10:], rtol=1e-5, atol=1e-5)


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
    trainer, state = create(methods.Linear(), mesh, images=images)
    assert not trainer.keeps_queries
    assert training_queries(trainer, state.params, toy.make_stream(), 0) is None


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        (methods.Linear(), Schedule(1, 16)),
        (methods.Linear(), Schedule(3, 16, cache_queries=False)),
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
    stream = toy.make_stream()

    def queries(devices):
        trainer, state = create(toy.METHODS["l2p"], make_mesh(devices))
        protocol = replace(trainer.recipe.protocol, batch_size=9, vote_group=None)
        trainer = replace(trainer, recipe=replace(trainer.recipe, protocol=protocol))
        return training_queries(trainer, state.params, stream, 2)

    one, eight = queries(1), queries(8)
    assert one is not None
    assert eight is not None
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)


def test_a_signal_is_heard_while_queries_are_computed(mesh):
    trainer, state = create(methods.Linear(), mesh)
    heard = []

    def stop():
        heard.append(1)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training_queries(trainer, state.params, toy.make_stream(), 0, stop)
    assert len(heard) == 2
    assert jax.tree.leaves(eqx.filter(state.params, eqx.is_array))
