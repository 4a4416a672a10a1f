"""Each method learns; and a method of one's own runs through the same loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

import promptax
from promptax import nn
from promptax.methods import L2P
from promptax.methods.base import is_trained, only


@pytest.mark.parametrize("name", toy.slow_except(["l2p", "linear"], toy.METHODS))
def test_a_method_learns_tasks_that_are_easy_to_tell_apart(fitted, name):
    """Just after a task, its accuracy among all classes seen; chance is 1/2 to 1/7."""
    matrix = fitted(name).matrices["instance"]
    assert (np.diagonal(matrix.values) >= 0.75).all()
    assert matrix.average_accuracy > 1 / toy.CLASSES
    assert fitted(name).losses[-1] < fitted(name).losses[0]


@pytest.mark.slow
def test_prompts_keep_what_fine_tuning_forgets_and_joint_training_is_the_upper_bound(fitted, mesh):
    average = {n: fitted(n).matrices["instance"].average_accuracy for n in toy.METHODS}
    assert max(average["l2p"], average["dualprompt"]) > average["finetune"]
    stream = toy.make_stream().joint()
    joint = toy.run(toy.METHODS["linear"], mesh, stream=stream, counted=True)
    matrix = joint.matrices["instance"]
    assert matrix.values.shape == (1, 3)
    assert (matrix.values >= 0.75).all()
    assert matrix.average_accuracy >= max(average.values())
    assert [joint.compiles.count[kind] for kind in ("train", "evaluate", "query")] == [1, 1, 1]


def test_a_task_begins_from_the_prompt_of_the_task_before(fitted):
    run = fitted("dualprompt")
    pool = run.states[0].params.pool
    task = run.trainer.task(run.evaluator.stream, 1)
    after = run.trainer.begin_task(toy.copy(run.states[0]), task).params.pool.prompt
    assert np.array_equal(after[:, :, 1], pool.prompt[:, :, 0])
    assert np.array_equal(after[:, :, 0], pool.prompt[:, :, 0])
    assert not np.array_equal(after[:, :, 1], pool.prompt[:, :, 1])


def test_the_first_release_puts_prompts_behind_the_class_token_with_its_position():
    method = L2P.v1()
    assert (method.prompt_length, method.top_k, method.pool_size, method.pull) == (5, 5, 10, 0.1)
    vit = toy.make_vit()
    model, _ = method.init(vit, toy.make_stream(), key=jr.key(0))
    parts = lambda model: (model.pool.prompt, model.head.kernel)
    strong = [jr.normal(jr.key(n), part.shape) for n, part in enumerate(parts(model))]
    model = eqx.tree_at(parts, model, strong)
    images = jr.uniform(jr.key(2), (2, 16, 16, 3))

    assert vit.cls_token is not None
    assert vit.position is not None
    cls_token = vit.cls_token
    position = vit.position

    @eqx.filter_jit
    def both(model):
        output = model(images, model.query(images))
        chosen = model.pool.prompt[0][output.selection.index].reshape(2, 25, 32)
        cls = jnp.broadcast_to(cls_token + position[0], (2, 1, 32))
        patches = vit.patches(images) + position[1:]
        sequence = jnp.concatenate([cls, chosen + position[0], patches], axis=1)
        features = vit.encode(sequence)[:, 1:26].mean(1)
        return output.logits, features @ model.head.kernel

    ours, wanted = both(model)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_a_method_of_ones_own_needs_no_registration(mesh):
    """`Pixels` (in toy.py) has a model that is no ViT at all."""
    seen = toy.Seen()
    recipe = promptax.Recipe(
        promptax.Optimizer(learning_rate=0.05), toy.RECIPE.schedule, toy.RECIPE.images
    )
    fit = promptax.fit(
        toy.Pixels(), toy.make_stream(), toy.make_vit(), recipe, mesh=mesh, callbacks=[seen]
    )
    assert [end.task_number for end in seen.tasks] == [0, 1, 2]
    assert (np.diagonal(fit.matrix.values) >= 0.75).all()
    assert np.array_equal(fit.learner.model["unused"], [1, 1, 1])
    test = toy.make_stream().test
    predicted = fit.learner(test[np.arange(27)]).argmax(1)
    hits = [np.mean((predicted == test.labels)[np.isin(test.labels, c)]) for c in toy.TASKS]
    np.testing.assert_allclose(fit.matrix.values[-1], hits)


@pytest.mark.parametrize("name", toy.slow_except(["finetune"], ["finetune", "linear"]))
def test_a_classifier_is_a_zero_head_on_the_features_of_its_backbone(name):
    method, vit = toy.METHODS[name], toy.make_vit(dtype="bfloat16")
    images = jr.uniform(jr.key(0), (2, 16, 16, 3))
    model, state = method.init(vit, toy.make_stream(), key=jr.key(0))
    assert model.backbone is vit
    model = eqx.tree_at(lambda model: model.head.bias, model, jnp.arange(7.0))
    predict = lambda model: method.predict(model, state, images, method.query(model, images))
    assert np.array_equal(eqx.filter_jit(predict)(model).logits, [[0, 1, 2, 3, 4, 5, 6]] * 2)
    features = eqx.filter_jit(lambda model: model.features(images))(model)
    assert np.array_equal(features, eqx.filter_jit(vit)(images).astype(jnp.float32))


def test_fixed_statistics_are_never_picked():
    norm = {"scale": jnp.ones(2), "statistics": nn.Statistics(jnp.zeros(2), jnp.ones(2))}
    model = {"backbone": [norm, norm], "head": jnp.ones(3), "pool": None, "steps": 3}
    where = lambda model: (model["backbone"], model["pool"], model["steps"])
    params, frozen = eqx.partition(model, is_trained(only(model, where, 0.5)))
    assert [leaf.tolist() for leaf in jax.tree.leaves(params)] == [[1, 1], [1, 1]]
    assert len(jax.tree.leaves(frozen)) == 2 * 2 + 2
