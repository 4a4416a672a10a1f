"""What each method computes, against plain NumPy; and what must follow from it in a run."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

import promptax
from promptax import UserError, data, methods
from promptax.core.settings import Replay, Schedule
from promptax.methods.components.buffer import extend
from promptax.methods.components.first_session import FirstSession
from promptax.methods.components.moments import Moments
from promptax.methods.components.ridge import best_ridge, solve_or_strengthen
from promptax.methods.derpp import logit_distance
from promptax.methods.ewc import merged_anchor, weighted_distance
from promptax.methods.lwf import distillation
from promptax.methods.ncm import nearest_mean_head

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def init(method):
    """The method's model and state before the toy stream, with a head that is not zero."""
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    parts = lambda model: (model.head.kernel, model.head.bias)
    strong = (jnp.asarray(normal(32, 7)), jnp.asarray(normal(7)))
    return eqx.tree_at(parts, model, strong), state


def in_order(tasks):
    stream = toy.make_stream()
    return data.class_incremental(stream.train, stream.test, tasks=tasks, name="toy")


# --- nearest class mean ---


def test_a_head_of_means_prefers_the_nearest():
    mean, feature = normal(5, 4), normal(30, 4)
    kernel, bias = nearest_mean_head(jnp.asarray(mean), "euclidean")
    squares = ((feature[:, None] - mean) ** 2).sum(-1)
    offset = 0.5 * (feature**2).sum(1, keepdims=True)
    np.testing.assert_allclose(feature @ kernel + bias - offset, -0.5 * squares, atol=1e-5)
    kernel, bias = nearest_mean_head(jnp.asarray(mean), "cosine")
    norms = np.linalg.norm(feature, axis=1)[:, None] * np.linalg.norm(mean, axis=1)
    cosine = (feature @ mean.T) / norms
    np.testing.assert_array_equal((feature @ kernel + bias).argmax(1), cosine.argmax(1))


def test_the_means_are_those_of_all_training_images_in_any_order_of_tasks(fitted, mesh):
    run = fitted("ncm")
    stream, images = run.evaluator.stream, np.arange(len(run.evaluator.stream.train.labels))
    pixels = jnp.asarray(stream.train[images], jnp.float32) / 255
    features = eqx.filter_jit(run.model)(pixels)
    sums = np.asarray(features)
    wanted = np.stack([sums[stream.train.labels == c].mean(0) for c in range(toy.CLASSES)])
    mean_of = lambda sums: sums.feature / sums.count[:, None]
    means = run.end.method_state
    np.testing.assert_allclose(mean_of(means), wanted, atol=1e-5)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    predict = eqx.filter_jit(run.trainer.method.predict)
    logits = predict(run.model, means, pixels, features).logits
    np.testing.assert_allclose(logits, features @ wanted.T, atol=1e-4)
    backwards = toy.run(toy.EVERY["ncm"], mesh, stream=in_order(toy.TASKS[::-1]))
    np.testing.assert_allclose(mean_of(backwards.end.method_state), mean_of(means), rtol=1e-6)


# --- ridge regression ---


def test_the_ridge_solution_and_its_choice_are_those_of_numpy():
    feature = np.maximum(normal(60, 9), 0)
    noisy = feature[:, :3] + 1.5 * normal(60, 3)  # so that the largest and smallest ridge lose
    label = np.eye(3, dtype=np.float32)[noisy.argmax(1)]
    first, second = np.arange(60) < 48, np.arange(60) >= 48
    parts = [
        Moments.of(jnp.asarray(feature), jnp.asarray(label), jnp.asarray(part, jnp.float32))
        for part in (first, second)
    ]
    x, y = feature[first].astype(float), label[first].astype(float)
    fit = lambda ridge: np.linalg.solve(x.T @ x + ridge * np.eye(9), x.T @ y)
    np.testing.assert_allclose(parts[0].solve(0.1), fit(0.1), atol=1e-4)
    ridges = 10.0 ** np.arange(-8, 9)
    errors = [((feature[second] @ fit(ridge) - label[second]) ** 2).sum() for ridge in ridges]
    best = ridges[np.argmin(errors)]
    assert 1e-4 < best < 1e6
    np.testing.assert_allclose(jax.jit(best_ridge)(*parts), best, rtol=1e-6)


def test_a_ridge_that_is_too_weak_for_all_tasks_is_made_stronger():
    random = np.random.default_rng(0)
    feature = jnp.asarray(1e3 * random.normal(size=(4, 32)), jnp.float32)
    total = Moments(feature.T @ feature, feature.T @ jnp.eye(4))
    weak = jnp.asarray(1e-8)
    assert not np.isfinite(total.solve(weak)).all()
    np.testing.assert_allclose(feature @ solve_or_strengthen(total, weak), np.eye(4), atol=1e-2)
    enough = jnp.asarray(1e3)
    np.testing.assert_array_equal(solve_or_strengthen(total, enough), total.solve(enough))


def test_ridge_regression_in_tasks_is_that_on_all_at_once(mesh):
    method = methods.RanPAC(width=64, ridge=1.0)
    tasks = toy.run(method, mesh)
    joint = toy.run(method, mesh, stream=toy.make_stream().joint())
    assert np.array_equal(tasks.model.projection, joint.model.projection)
    kernel = tasks.end.method_state.kernel
    np.testing.assert_allclose(kernel, joint.end.method_state.kernel, rtol=1e-4, atol=1e-4)
    images = jnp.asarray(toy.make_stream().train[np.arange(133)], jnp.float32) / 255
    project = eqx.filter_jit(lambda model: model.project(model.backbone(images)))
    h = np.asarray(project(tasks.model), float)
    y = np.eye(toy.CLASSES)[toy.make_stream().train.labels]
    wanted = np.linalg.solve(h.T @ h + np.eye(64), h.T @ y)
    np.testing.assert_allclose(kernel, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_ridge_that_is_chosen_serves_too(mesh):
    run = toy.run(methods.RanPAC(width=64), mesh)
    assert (run.matrices["instance"].values[-1] > 0.9).all()


def test_without_a_projection_it_is_ridge_regression_on_features(mesh):
    run = toy.run(methods.RanPAC(width=0, ridge=1.0), mesh)
    images = jnp.asarray(toy.make_stream().train[np.arange(133)], jnp.float32) / 255
    h = np.asarray(eqx.filter_jit(run.model.features)(images), float)
    y = np.eye(toy.CLASSES)[toy.make_stream().train.labels]
    wanted = np.linalg.solve(h.T @ h + np.eye(32), h.T @ y)
    np.testing.assert_allclose(run.end.method_state.kernel, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "ssf", "vpt"])
def test_the_first_session_is_trained_on_the_first_task_and_then_frozen(mesh, kind):
    session = FirstSession(kind, adapter_width=4, prompt_tokens=2)
    run = toy.run(methods.RanPAC(width=64, ridge=1.0, first_session=session), mesh, counted=True)
    assert run.compiles.count["train"] == 1
    first, second, third = [state.params for state in run.states]
    assert not toy.same_bits(run.start.params, first)
    assert toy.same_bits(first, second)
    assert toy.same_bits(first, third)
    frozen = eqx.partition(run.model, eqx.is_array)[0].backbone.vit
    assert toy.same_bits(frozen, toy.make_vit()), "the ViT itself is not trained"
    steps = run.trainer.steps(run.evaluator.stream, 0)
    assert int(run.end.step) == len(run.losses) == steps > 0
    assert run.losses[-1] < run.losses[0]
    assert [run.trainer.steps(run.evaluator.stream, task) for task in (1, 2)] == [0, 0]


def test_what_learns_only_its_first_task_by_steps_has_nothing_to_replay():
    method = methods.RanPAC(first_session=FirstSession("ssf"))
    with pytest.raises(UserError, match="learns only some tasks by steps"):
        methods.Rehearsal(method, toy.REPLAY)


# --- rehearsal ---


@pytest.mark.parametrize(
    ("name", "epochs", "offered"),
    [
        ("derpp", "auto", True),
        ("derpp", "first", False),
        ("derpp", "every", True),
        ("er", "auto", False),
        ("er", "every", True),
    ],
)
def test_images_are_offered_again_where_logits_are_stored_or_where_asked_for(name, epochs, offered):
    """In a later epoch; what was drawn from the buffer is never offered."""
    known: Any = toy.EVERY[name]
    replay = dataclasses.replace(toy.REPLAY, replay_batch=2, buffer_epochs=epochs)
    method = dataclasses.replace(known, replay=replay)
    model, state = init(method)
    rows = 4 + 2 * method.samples
    stored = jnp.zeros((rows, 7))
    own = jnp.arange(rows) < 4
    batch = toy.prepared(toy.make_batch(RANDOM, rows), method, model, stored_logits=stored)
    loss = eqx.filter_jit(method.loss)
    for from_buffer, wanted in ((~own, 4 * offered), (jnp.ones(rows, bool), 0)):
        later = dataclasses.replace(batch, is_new=jnp.zeros(rows, bool), is_replayed=from_buffer)
        _, (_, after) = loss(model, state, later, toy.make_task(), key=jr.key(0))
        assert after.buffer.offered.sum() == wanted


def test_dark_replay_adds_a_distance_and_a_second_cross_entropy():
    frozen = methods.Finetune(train_backbone=False)
    method = methods.DERPP(frozen, alpha=0.3, beta=0.7, replay=Replay(8, replay_batch=2))
    model, state = init(method)
    batch, stored = toy.make_batch(RANDOM, 4), jnp.asarray(normal(4, 7))
    replayed = toy.make_batch(RANDOM, 4, (0, 1, 4))
    weight = jnp.asarray([1.0, 0, 1, 1])  # one of those for the distance is padding
    replayed = dataclasses.replace(replayed, weight=weight, stored_logits=stored)
    raw = extend(batch, replayed)
    whole = toy.prepared(raw, method, model, stored_logits=raw.stored_logits)
    task = dataclasses.replace(toy.make_task(), seen=jnp.arange(7) < 5)
    loss, (logits, after) = eqx.filter_jit(method.loss)(model, state, whole, task, key=jr.key(0))
    logits = np.asarray(logits)
    entropy = -log_softmax(logits[:, :5])[np.arange(8), whole.label]
    squares = ((logits[4] - stored[0]) ** 2).mean()
    wanted = entropy[:4].mean() + 0.3 * squares + 0.7 * entropy[6:].mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    padding = jax.tree.map(lambda leaf: leaf[5:6], whole)
    assert logit_distance(jnp.asarray(logits[5:6]), padding) == 0
    # Only what is new enters the buffer, with the logits that it has now.
    assert np.array_equal(after.buffer.image[:4], batch.image)
    assert after.buffer.logits is not None
    assert np.array_equal(after.buffer.logits[:4], logits[:4])
    assert after.buffer.offered == 4


def test_a_replayed_class_competes_and_one_that_no_task_has_shown_does_not():
    method = toy.EVERY["er"]
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    batch = toy.prepared(toy.make_batch(RANDOM, 14, (0, 1, 2)), method, model)
    task = dataclasses.replace(toy.make_task(1), seen=jnp.arange(7) < 3)
    loss, _ = eqx.filter_jit(method.loss)(model, state, batch, task, key=jr.key(0))
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


@pytest.mark.slow
def test_replay_of_everything_comes_near_to_joint_training(fitted, mesh):
    everything = Replay(len(toy.make_stream().train.labels), replay_batch=32)
    method = methods.ER(methods.Finetune(train_backbone=False), everything)
    recipe = dataclasses.replace(toy.recipe_for(method), schedule=Schedule(12, 16))
    fit = promptax.fit(method, toy.make_stream(), toy.make_vit(), recipe, mesh=mesh)
    joint = toy.run(toy.EVERY["linear"], mesh, stream=toy.make_stream().joint())
    average = lambda matrix: float(matrix.values[-1].mean())
    assert average(fit.matrix) >= average(joint.matrices["instance"]) - 0.05
    assert average(fit.matrix) > average(fitted("linear").matrices["instance"]) + 0.2


# --- elastic weight consolidation ---


def test_the_fisher_information_of_a_head_is_that_of_numpy():
    method = methods.EWC(train_backbone=False)
    model, state = init(method)
    parts = lambda model: (model.head.kernel, model.head.bias)
    batch = toy.prepared(toy.make_batch(RANDOM, 5, (0, 1, 2)), method, model)
    batch = dataclasses.replace(batch, weight=jnp.asarray([1.0, 1, 1, 1, 0]))
    task = dataclasses.replace(toy.make_task(0, (0, 1, 2)), examples=jnp.int32(4))

    @eqx.filter_jit
    def conclude(model, state):
        model, state = method.observe(model, state, batch, task, key=jr.key(0))
        return method.end_task(model, state, task, key=jr.key(1))[1]

    after = conclude(model, state)
    feature = np.asarray(eqx.filter_jit(model.features)(batch.images))
    logits = (feature @ model.head.kernel + model.head.bias)[:, :3]
    residual = np.zeros((5, 7), np.float32)
    residual[:, :3] = np.eye(3)[batch.label] - np.exp(log_softmax(np.asarray(logits)))
    gradient = feature[:4, :, None] * residual[:4, None]
    kernel, bias = parts(after.fisher)
    np.testing.assert_allclose(kernel, (gradient**2).mean(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(bias, (residual[:4] ** 2).mean(0), rtol=1e-3, atol=1e-6)
    assert toy.same_bits(parts(after.anchor), parts(model))
    assert not np.any(after.current.head.kernel)


def test_one_merged_penalty_pulls_as_those_of_all_tasks_together():
    """It differs from their sum by a constant only, so that gradients agree."""
    values, fishers = normal(3, 6), normal(3, 6) ** 2
    fishers[:, 0] = 0  # held by no task
    anchor, fisher = jnp.zeros(6), jnp.zeros(6)
    for value, new in zip(values, fishers, strict=True):
        anchor = merged_anchor(anchor, fisher, jnp.asarray(value), jnp.asarray(new))
        fisher = fisher + new
    at = jnp.asarray(normal(6))
    np.testing.assert_allclose(weighted_distance(at, at + 2, fisher), 4 * fisher.sum(), rtol=1e-5)
    ours = jax.grad(weighted_distance)(at, anchor, fisher)
    np.testing.assert_allclose(ours, (2 * fishers * (at - values)).sum(0), atol=1e-4)
    assert anchor[0] == values[-1, 0]


@pytest.mark.slow
def test_without_a_coefficient_it_is_fine_tuning_and_with_one_it_moves_less(fitted, mesh):
    """The coefficient is traced, so that the penalty is computed and may move a rounding error."""
    free = toy.run(methods.EWC(coefficient=0.0), mesh)
    np.testing.assert_allclose(free.losses, fitted("finetune").losses, rtol=1e-5)
    held = toy.run(methods.EWC(coefficient=1e5), mesh)
    params = lambda run: [state.params for state in run.states]
    assert toy.same_bits(params(held)[0], params(free)[0]), "nothing is held in the first task"
    assert not toy.same_bits(params(held)[1], params(free)[1])
    moved = lambda run: sum(
        float(jnp.abs(late - early).sum())
        for early, late in zip(
            *(jax.tree.leaves(params(run)[n].backbone) for n in (0, 2)), strict=True
        )
    )
    assert moved(held) < 0.7 * moved(free)


# --- distillation ---


def test_distillation_is_that_of_numpy_over_old_classes_alone():
    new, old = normal(4, 5), normal(5, 4).T
    classes = np.array([True, True, False, True, False])
    ours = distillation(jnp.asarray(new), jnp.asarray(old), jnp.asarray(classes), 2.0)
    power = np.exp(log_softmax(old[:, classes])) ** (1 / 2)
    soft = power / power.sum(1, keepdims=True)  # as the paper writes it
    wanted = -(soft * log_softmax(new[:, classes] / 2)).sum(1)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    gradient = jax.grad(
        lambda new: distillation(new, jnp.asarray(old), jnp.asarray(classes), 2.0).sum()
    )
    assert not np.any(gradient(jnp.asarray(new))[:, ~classes])
    none = distillation(jnp.asarray(new), jnp.asarray(old), jnp.zeros(5, bool), 2.0)
    assert not np.any(none)


@pytest.mark.slow
def test_the_teacher_is_the_model_before_the_task(fitted):
    run = fitted("lwf")
    teacher = run.end.method_state
    assert toy.same_bits(teacher.params, run.end.params)
    assert np.array_equal(teacher.seen, [True] * 7)
    assert not np.any(run.start.method_state.seen)


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: methods.ER(replay=Replay(0)), "needs a buffer of at least 1 image, got 0"),
        (lambda: methods.DERPP(replay=Replay(0)), "needs a buffer of at least 1 image, got 0"),
        (lambda: methods.DERPP(alpha=-1.0), "alpha is -1.0"),
        (lambda: methods.DERPP(beta=float("nan")), "beta is nan"),
        (lambda: methods.EWC(coefficient=-1.0), "coefficient is -1.0"),
        (lambda: methods.EWC(gamma=1.5), "gamma is 1.5"),
        (lambda: methods.EWC(gamma=0.5, per_task=True), "gamma is 0.5"),
        (lambda: methods.LwF(coefficient=float("inf")), "coefficient is inf"),
        (lambda: methods.LwF(temperature=0.0), "temperature is 0.0"),
        (lambda: methods.RanPAC(-1), "width of the projection is -1"),
        (lambda: methods.RanPAC(ridge=0.0), "ridge is 0.0"),
    ],
)
def test_hyperparameters_out_of_range_are_user_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_stored_logits_and_mixed_images_do_not_go_together():
    method = toy.EVERY["derpp"]
    model, state = init(method)
    batch = toy.prepared(toy.make_batch(RANDOM, 32), method, model)
    batch = dataclasses.replace(batch, mixed_label=batch.label, share=batch.weight)
    with pytest.raises(UserError, match="turn mixup and CutMix off"):
        method.loss(model, state, batch, toy.make_task(), key=jr.key(0))
