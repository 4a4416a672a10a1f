"""What the methods with prompts for each task compute, against plain NumPy; and what follows."""

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from promptax import UserError, data, methods, nn
from promptax.core.settings import Optimizer
from promptax.methods import Alignment
from promptax.methods.coda import component_weights, orthogonality
from promptax.methods.components.feature_sample import FeatureSample
from promptax.methods.components.kmeans import inertia, k_means, nearest
from promptax.methods.components.losses import contrastive, contrastive_in_shares
from promptax.methods.components.orthonormal import orthonormal_rows
from promptax.methods.components.statistics import Centroids, FeatureStatistics
from promptax.methods.components.task_identity import IdentityTraining, ResidualHead
from promptax.training.loop import StepDone, train_task
from promptax.training.trainer import Trainer

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def init(method, stream=None, vit=None):
    """The method's model and state before a stream, the toy stream if None."""
    stream = toy.make_stream() if stream is None else stream
    return method.init(toy.make_vit() if vit is None else vit, stream, key=jr.key(0))


def joined(run, stage):
    """The model after a task."""
    return run.trainer.model(run.states[stage])


# --- a task trains its own share ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coda", "sprompts", "hide", "linear", "lwf", "slca", "sldc"])
@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer("adamw", 0.2, weight_decay=0.1, reset=False),
        Optimizer("sgd", 0.2, momentum=0.9, reset=False),
    ],
)
def test_what_other_tasks_trained_keeps_its_bits_whatever_the_optimizer(name, optimizer, mesh):
    method, stream = toy.EVERY[name], toy.make_stream()
    recipe = dataclasses.replace(toy.recipe_for(method), optimizer=optimizer)
    trainer, state = Trainer.create(
        method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    steps = lambda state, stage: (
        event.state
        for event in train_task(trainer, state, stream, stage, seed=0)
        if isinstance(event, StepDone)
    )
    for stage in range(2):
        task = trainer.task(stream, stage)
        training = steps(state, stage)
        before = toy.copy(next(training).params)
        *_, state = (toy.copy(state) for state in training)
        factors = trainer.setup.factors(before, task)
        spread = jax.tree.map(np.broadcast_to, factors, jax.tree.map(np.shape, before))
        moved = jax.tree.map(lambda old, new: np.asarray(old != new), before, state.params)
        pairs = list(zip(jax.tree.leaves(spread), jax.tree.leaves(moved), strict=True))
        assert not any((moved & (own == 0)).any() for own, moved in pairs)
        assert all(moved.any() for own, moved in pairs if own.any())


@pytest.mark.parametrize("name", ["linear", "ewc", "slca", "sldc", "coda", "hide"])
def test_head_columns_of_earlier_classes_are_left_alone_under_a_class_mask(name):
    """By weight decay too, which reaches what no gradient does."""
    method = toy.EVERY[name]
    model = init(method)[0]
    task = dataclasses.replace(toy.make_task(1, (2, 3)), seen=jnp.arange(7) < 4)
    trains = lambda method: np.asarray(method.trainable(model, task).head.kernel) > 0
    assert np.array_equal(trains(method), [False, False, True, True, True, True, True])
    # With replay, all seen classes compete.
    assert trains(methods.Rehearsal(method, toy.REPLAY)).all()


def test_distillation_trains_head_columns_of_earlier_classes():
    method = methods.LwF()
    task = dataclasses.replace(toy.make_task(1, (2, 3)), seen=jnp.arange(7) < 4)
    assert np.all(method.trainable(init(method)[0], task).head.kernel)


def test_there_is_room_for_each_task_of_the_stream():
    stream = toy.make_stream().first(2)
    assert len(init(toy.EVERY["sprompts"], stream)[0].prompt) == 2
    assert len(init(toy.EVERY["hide"], stream)[0].prompt) == 2
    assert init(toy.EVERY["coda"], stream)[0].per_task == 3
    with pytest.raises(UserError, match=r"2 components .* 3 tasks: choose at least 3"):
        init(methods.CODAPrompt(components=2, layers=(0,)))


# --- CODA-Prompt ---


def test_the_prompt_is_the_sum_of_components_by_their_cosines():
    query, key, attention = normal(3, 8), normal(2, 5, 8), normal(5, 2, 8).swapaxes(0, 1)
    key[:, 4] = attention[:, 4] = 0  # of a task to come
    weights = component_weights(*(jnp.asarray(x) for x in (query, key, attention)))
    attended = query[None, :, None] * attention[:, None]
    cosine = (unit(attended[:, :, :4]) * unit(key[:, :4])[:, None]).sum(-1)
    np.testing.assert_allclose(weights[..., :4], cosine, atol=1e-5)
    assert not np.any(weights[..., 4])


def test_a_component_gives_its_first_half_to_the_keys_of_its_block():
    method, vit = toy.EVERY["coda"], toy.make_vit()
    model, _ = init(method)
    parts = lambda model: (model.prompt, model.key, model.attention, model.head.kernel)
    strong = [jnp.asarray(normal(*part.shape)) for part in parts(model)]
    model = eqx.tree_at(parts, model, strong)
    images = jr.uniform(jr.key(1), (2, 16, 16, 3))

    @eqx.filter_jit
    def both(model):
        query = method.query(model, images)
        weights = component_weights(query, model.key, model.attention)
        flat = model.prompt.reshape(2, 6, 4, 32)  # tokens of width 32, as the authors keep them
        mixed = jnp.einsum("gbm,gmld->gbld", weights, flat)
        pair = lambda x: jnp.stack([x[:, :2], x[:, 2:]], 1).reshape(2, 2, 2, 4, 8)
        x = vit.tokens(vit.patches(images))
        feature = vit.encode(x, prefixes={0: pair(mixed[0]), 1: pair(mixed[1])})[:, 0]
        return model(images, query), feature @ model.head.kernel

    ours, wanted = both(model)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_orthogonality_is_the_mean_square_of_what_numpy_finds():
    rows, used = normal(2, 5, 2, 4), np.arange(5) < 3
    flat = rows.reshape(2, 5, -1)[:, used].astype(float)
    excess = flat @ flat.swapaxes(1, 2) - np.eye(3)
    ours = orthogonality(jnp.asarray(rows), jnp.asarray(used))
    np.testing.assert_allclose(ours, (excess**2).mean((1, 2)).sum(), rtol=1e-5)
    assert orthogonality(jnp.eye(4)[None], jnp.ones(4, bool)) == 0
    gradient = jax.grad(orthogonality)(jnp.asarray(rows), jnp.asarray(used))
    assert np.any(gradient[:, 2])
    assert not np.any(gradient[:, 3:])


def test_new_components_are_orthonormal_and_orthogonal_to_earlier_ones():
    rows, own = normal(2, 6, 3, 5), (np.arange(6) >= 2) & (np.arange(6) < 4)
    rows[:, 4:] = 0
    after = np.asarray(orthonormal_rows(jnp.asarray(rows), jnp.asarray(own), key=jr.key(0)))
    assert np.array_equal(after[:, ~own], rows[:, ~own])
    flat = after.reshape(2, 6, 15)
    products = flat @ flat.swapaxes(1, 2)
    np.testing.assert_allclose(products[:, 2:4, 2:4], np.tile(np.eye(2), (2, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(products[:, 2:4, :2], 0, atol=1e-5)


def test_each_task_adds_components_and_leaves_the_others(fitted):
    run, before = fitted("coda"), []
    for stage, used in enumerate((2, 4, 6)):
        model = joined(run, stage)
        for part in (model.prompt, model.key, model.attention):
            rows = np.abs(part).reshape(2, 6, -1).sum(-1)
            assert (rows[:, :used] > 0).all()
            assert not rows[:, used:].any()
        parts = [model.prompt, model.key, model.attention]
        for part, old in zip(parts, before, strict=False):
            assert np.array_equal(part[:, : used - 2], old[:, : used - 2])
        before = parts


# --- S-Prompts ---


def clumps(count=3, each=20, dim=4):
    centre = 10 * np.eye(count, dim, dtype=np.float32)
    return centre, (centre[:, None] + 0.1 * normal(count, each, dim)).reshape(-1, dim)


def test_k_means_finds_clumps_and_leaves_out_what_is_not_valid():
    centre, points = clumps()
    points = np.concatenate([points, np.full((5, 4), 99, np.float32)])
    valid = jnp.arange(65) < 60
    found = np.asarray(jax.jit(k_means, static_argnums=2)(points, valid, 3, key=jr.key(0)))
    wanted = points[:60].reshape(3, 20, 4).mean(1)
    order = np.argsort(found.argmax(1))
    np.testing.assert_allclose(found[order], wanted, atol=1e-4)
    assert np.array_equal(nearest(jnp.asarray(centre), jnp.asarray(wanted)), [0, 1, 2])


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_k_means_cannot_be_improved_by_another_round(points, clusters, seed):
    drawn = np.random.default_rng(seed).normal(size=(12, 3)).astype(np.float32)
    valid = np.arange(12) < points
    run = jax.jit(k_means, static_argnums=2)
    found = np.asarray(run(jnp.asarray(drawn), jnp.asarray(valid), clusters, key=jr.key(seed)))
    drawn = drawn[:points]
    own = ((drawn[:, None] - found) ** 2).sum(-1).argmin(1)
    for cluster in np.unique(own):
        np.testing.assert_allclose(found[cluster], drawn[own == cluster].mean(0), atol=1e-5)


def test_k_means_keeps_the_best_of_several_starts():
    """Nine clumps in a grid: single starts often put two centroids into one of them."""
    centre = np.stack(np.meshgrid(np.arange(3.0), np.arange(3.0)), -1).reshape(9, 1, 2)
    drawn = centre + 0.05 * normal(9, 20, 2)
    points, valid = jnp.asarray(drawn.reshape(180, 2), jnp.float32), jnp.ones(180, bool)
    best = ((drawn - drawn.mean(1, keepdims=True)) ** 2).sum()

    @functools.partial(jax.jit, static_argnums=1)
    def worst(keys, starts):
        find = lambda key: k_means(points, valid, 9, key=key, starts=starts)
        return jax.lax.map(lambda key: inertia(points, valid, find(key)), keys).max()

    keys = jr.split(jr.key(0), 8)
    assert worst(keys, 1) > 2 * best
    np.testing.assert_allclose(worst(keys, 10), best, rtol=1e-4)


def test_the_task_is_that_of_the_nearest_centroid_and_its_head_decides():
    method, stream = methods.SPrompts(length=2, clusters=3), toy.make_stream()
    tasks = ((0, 1), (2, 3, 4), (5,), (6,))
    model, state = init(method, data.class_incremental(stream.train, stream.test, tasks=tasks))
    centroid = unit(normal(4, 3, 32))
    centroid[3] = np.asarray(state.centroid)[3]  # not learned yet
    known = np.zeros((4, 7), bool)
    known[0, :2] = known[1, 2:5] = known[2, 5:] = True
    parts = lambda state: (state.centroid, state.known)
    state = eqx.tree_at(parts, state, (jnp.asarray(centroid), jnp.asarray(known)))
    kernel = jnp.asarray(normal(4, 32, 7))
    model = eqx.tree_at(lambda model: model.head.kernel, model, kernel)
    images, query = jr.uniform(jr.key(1), (5, 16, 16, 3)), normal(5, 32)
    predicted = eqx.filter_jit(method.predict)(model, state, images, jnp.asarray(query))
    distance = np.abs(unit(query)[:, None, None] - centroid).sum(-1).min(-1)
    chosen = distance.argmin(1)
    assert predicted.selected is not None
    assert np.array_equal(predicted.selected, chosen[:, None])
    assert len(set(chosen)) > 1
    assert 3 not in chosen
    for row, task in enumerate(chosen):
        logits = eqx.filter_jit(type(model).logits)(model, images, jnp.full(5, task, jnp.int32))
        of_all, ours = np.asarray(logits)[row], np.asarray(predicted.logits)[row]
        own, other = known[task], ~known[task]
        np.testing.assert_allclose(ours[own], of_all[task, own], atol=1e-4)
        assert own[np.argmax(ours)]
        # The others are ranked by the logits of the task that knows them.
        wanted = (of_all * known).sum(0)[other]
        np.testing.assert_allclose(ours[other] - ours[other][0], wanted - wanted[0], atol=1e-2)
        assert ours[other].max() < ours[own].min() - 1000


@pytest.mark.slow
def test_centroids_are_those_of_the_features_of_their_task(fitted):
    run = fitted("sprompts")
    stream, features = run.evaluator.stream, eqx.filter_jit(run.model.backbone)
    state = run.end.method_state
    for task, stage in enumerate(stream.tasks):
        images = jnp.asarray(stream.train[stage.index], jnp.float32) / 255
        feature = unit(np.asarray(features(images)))
        own = ((feature[:, None] - state.centroid[task]) ** 2).sum(-1).argmin(1)
        for cluster in np.unique(own):
            mean = feature[own == cluster].mean(0)
            np.testing.assert_allclose(state.centroid[task, cluster], mean, atol=1e-5)
    assert not np.any(state.sample.feature)


def test_features_beyond_the_sample_and_padding_are_not_taken():
    method = methods.SPrompts(length=2, sample=20)
    model, state = init(method)
    batch = toy.prepared(toy.make_batch(RANDOM, 16), method, model)
    weight = jnp.where(jnp.arange(16) < 12, 1.0, 0)
    batch = dataclasses.replace(batch, weight=weight)
    observe = eqx.filter_jit(method.observe)
    for _ in range(2):
        model, state = observe(model, state, batch, toy.make_task(), key=jr.key(0))
    feature = unit(np.asarray(eqx.filter_jit(model.backbone)(batch.images)))
    wanted = np.concatenate([feature[:12], feature[:8]])
    np.testing.assert_allclose(state.sample.feature, wanted, atol=1e-5)
    assert state.sample.count == 24


# --- HiDe-Prompt ---


def recognise(state, query):
    """The task that the second head recognises."""
    return state.identity.recognise(query, state.pairs)


def test_the_contrastive_term_is_that_of_numpy():
    rows, weight = normal(6, 4), np.array([1, 0, 1, 1, 0, 1.0], np.float32)
    ours = contrastive(jnp.asarray(rows), jnp.asarray(weight), 0.8)
    real = rows[weight > 0].astype(float)
    similarity = real @ real.T / 0.8
    share = np.exp(similarity) / np.exp(similarity).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, -np.log(np.diag(share)).mean(), rtol=1e-5)
    gradient = jax.grad(contrastive)(jnp.asarray(rows), jnp.asarray(weight), 0.8)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[weight == 0])


def test_centroids_have_the_means_and_variances_of_the_clusters_of_each_class():
    """Of classes that the task has; a cluster of a single feature is not drawn from."""
    _, points = clumps(count=3, each=6)
    points = np.concatenate([points, -points[:1]])
    label = np.append(np.repeat([0, 0, 2], 6), 2).astype(np.int32)
    order = np.random.default_rng(0).permutation(19)
    sample = FeatureSample(jnp.zeros((24, 4)), jnp.zeros(24, jnp.int32), jnp.int32(0))
    before = Centroids.empty(3, 2, sample)
    known = (before.mean.at[1].set(1.0), before.count.at[1].set(5.0))
    before = eqx.tree_at(lambda centroids: (centroids.mean, centroids.count), before, known)
    added = before.add(jnp.asarray(points[order]), jnp.asarray(label[order]), jnp.ones(19))
    after = eqx.filter_jit(lambda centroids: centroids.concluded(key=jr.key(0)))(added)
    assert np.array_equal(after.mean[1], np.ones((2, 4)))
    assert sorted(np.asarray(after.count[0])) == [6, 6]
    assert sorted(np.asarray(after.count[2])) == [1, 6]
    for cluster in range(2):
        rows = points[:6] if after.mean[0, cluster, 0] > 5 else points[6:12]
        np.testing.assert_allclose(after.mean[0, cluster], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(after.variance[0, cluster], rows.var(0), atol=1e-5)
    assert not after.sample.taken.any()
    assert np.array_equal(after.centres()[1], np.ones(6))
    factors = after.factors(ridge=0.01)
    # Class 1 has centroids here, but no variance.
    several = np.asarray(after.count[2]) > 1
    assert np.array_equal(factors.seen, [True, True, False, False, *several])
    assert np.array_equal(factors.label, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(factors.factor[0], np.sqrt(after.variance[0, 0] + 0.01), rtol=1e-5)


def test_the_contrastive_term_of_shares_is_the_mean_over_those_that_have_features():
    means, features = jnp.asarray(normal(3, 4)), jnp.asarray(normal(7, 4))
    mean_weight, weight = jnp.asarray([1.0, 0, 1]), jnp.asarray([1.0, 1, 1, 1, 0, 0, 0])
    whole = lambda rows, weight: contrastive(
        jnp.concatenate([means, rows]), jnp.concatenate([mean_weight, weight]), 0.8
    )
    of = lambda share: eqx.filter_jit(contrastive_in_shares)(
        means, mean_weight, features, weight, share=share, temperature=0.8
    )
    np.testing.assert_allclose(of(7), whole(features, weight), rtol=1e-6)
    # Of shares of 2, the last two have no feature but padding.
    wanted = (whole(features[:2], weight[:2]) + whole(features[2:4], weight[2:4])) / 2
    np.testing.assert_allclose(of(2), wanted, rtol=1e-5)


def test_a_residual_head_is_a_linear_one_on_a_normalised_sum():
    head = ResidualHead(6, 4, key=jr.key(0))
    features = normal(5, 6)
    hidden = features @ head.mlp.hidden.kernel
    gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
    x = features + gelu @ head.mlp.out.kernel
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(head(jnp.asarray(features)), x @ head.linear.kernel, atol=1e-5)
    assert head.mlp.hidden.kernel.shape == (6, 12)
    assert 0.01 < float(head.linear.kernel.std()) < 0.025


def test_a_prefix_has_a_share_of_the_mean_of_earlier_ones():
    method = methods.HiDePrompt(length=2, layers=(0, 1), ensemble=0.25)
    model, state = init(method)
    prompt = np.asarray(model.prompt)
    for index in range(3):
        wanted = prompt[index]
        if index:
            wanted = 0.75 * wanted + 0.25 * prompt[:index].mean(0)
        ours = model.ensemble(toy.make_task(index), method.ensemble)
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    begin = lambda index: method.begin_task(model, state, toy.make_task(index), key=jr.key(0))[0]
    assert np.array_equal(begin(1).prompt[1], prompt[0])
    assert np.array_equal(begin(1).prompt[2], prompt[2])
    assert toy.same_bits(begin(0).prompt, prompt)


@pytest.mark.slow
def test_statistics_are_those_of_the_features_of_each_class_with_and_without_prompts(fitted):
    run = fitted("hide")
    stream, method, memory = run.evaluator.stream, run.trainer.method, run.end.method_state
    assert memory.pairs.used == toy.CLASSES
    pairs = [task * 7 + label for task, classes in enumerate(toy.TASKS) for label in classes]
    assert np.array_equal(memory.pairs.pair, pairs)
    for task, classes in enumerate(toy.TASKS):
        model = joined(run, task)
        prompts = model.prompt[task]
        for label in classes:
            index = np.flatnonzero(stream.train.labels == label)
            images = jnp.asarray(stream.train[index], jnp.float32) / 255
            both = jnp.broadcast_to(prompts, (len(index), *prompts.shape))
            plain = np.asarray(eqx.filter_jit(method.query)(model, images))
            prompted = np.asarray(eqx.filter_jit(type(model).features)(model, images, both))
            for ours, wanted in ((memory.plain, plain), (memory.prompted, prompted)):
                np.testing.assert_allclose(ours.mean[label], wanted.mean(0), atol=1e-4)
                covariance = np.cov(wanted.T)
                np.testing.assert_allclose(ours.covariance[label], covariance, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hide", "hide-images"])
def test_the_second_head_tells_the_task_of_what_it_was_trained_on(mesh, name):
    enough = Alignment(align_epochs=20, align_samples=64, align_batch=32, align_rate=0.05)
    run = toy.run(dataclasses.replace(toy.EVERY[name], alignment=enough), mesh)
    stream = run.evaluator.stream
    for task, stage in enumerate(stream.tasks):
        images = jnp.asarray(stream.train[stage.index], jnp.float32) / 255
        chosen = recognise(run.end.method_state, run.trainer.method.query(run.model, images))
        assert np.mean(np.asarray(chosen) == task) > 0.8


def test_the_second_head_chooses_among_pairs_that_there_are():
    _, state = init(toy.EVERY["hide"])
    known = np.zeros((3, 7), bool)
    known[0, :2] = known[2, :2] = True  # the classes of the first task came again
    kernel, query = normal(32, 21), normal(9, 32)
    parts = lambda state: (state.pairs.known, state.identity.head.kernel)
    state = eqx.tree_at(parts, state, (jnp.asarray(known), jnp.asarray(kernel)))
    scores = np.where(known, (query @ kernel).reshape(9, 3, 7), -np.inf)
    wanted = scores.max(2).argmax(1)
    assert set(wanted) == {0, 2}
    assert np.array_equal(recognise(state, jnp.asarray(query)), wanted)


def test_a_gaussian_is_that_of_a_class_in_a_task_where_classes_come_again():
    stream = toy.make_stream()
    whole = lambda source: np.arange(len(source.labels)) % 2
    stream = data.domain_incremental(
        stream.train,
        stream.test,
        (whole(stream.train), whole(stream.test)),
        domain_names=["even", "odd"],
        class_names=stream.class_names,
    )
    _, state = init(toy.EVERY["hide"], stream)
    assert state.plain.mean.shape == (14, 32)
    second = dataclasses.replace(toy.make_task(1), classes=jnp.ones(7, bool))
    pairs = dataclasses.replace(state.pairs, used=jnp.int32(7))
    assert np.array_equal(pairs.slot(second), np.arange(7, 14))
    some = dataclasses.replace(second, classes=jnp.arange(7) % 3 == 0)
    assert np.array_equal(pairs.slot(some), [7, 14, 14, 8, 14, 14, 9])


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: methods.CODAPrompt(length=7), "length is 7; expected an even number"),
        (lambda: methods.CODAPrompt(components=0), "0 prompts"),
        (lambda: methods.CODAPrompt(layers=(1, 1)), "name one twice"),
        (lambda: methods.CODAPrompt(orthogonality=-1.0), "orthogonality is -1.0"),
        (lambda: methods.CODAPrompt(orthogonality=float("nan")), "orthogonality is nan"),
        (lambda: methods.SPrompts(length=0), "length 0"),
        (lambda: methods.SPrompts(clusters=0), "clusters is 0"),
        (lambda: methods.SPrompts(sample=0), "sample is 0"),
        (lambda: methods.HiDePrompt(length=0), "length 0"),
        (lambda: methods.HiDePrompt(ensemble=1.5), "ensemble is 1.5"),
        (lambda: methods.HiDePrompt(head_rate=-0.1), "head rate is -0.1"),
        (lambda: methods.HiDePrompt(contrast=-1.0), "contrast is -1.0"),
        (lambda: methods.HiDePrompt(temperature=0.0), "temperature is 0.0"),
        (lambda: methods.HiDePrompt(contrast_rows=0), "contrast rows is 0"),
        (lambda: FeatureStatistics(centroids=0), "centroids is 0"),
        (lambda: FeatureStatistics(feature_sample=0), "feature sample is 0"),
        (lambda: IdentityTraining("residual"), "identity epochs is 0; expected at least 1 for a"),
        (lambda: IdentityTraining(identity_epochs=-1), "identity epochs is -1"),
        (lambda: IdentityTraining(identity_rate=0.0), "identity rate is 0.0"),
        (lambda: IdentityTraining(identity_batch=0), "identity batch is 0"),
        (lambda: IdentityTraining(identity_align_batch=0), "align batch is 0"),
    ],
)
def test_hyperparameters_out_of_range_are_user_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("name", toy.slow_except(["coda"], ["coda", "sprompts", "hide"]))
def test_prompts_need_a_vit_and_blocks_that_it_has(name):
    method = toy.EVERY[name]
    resnet = nn.ResNet(nn.resnet_config("resnet-18-small", 32), key=jr.key(0))
    with pytest.raises(UserError, match="prompts need a ViT"):
        init(method, vit=resnet)
    if name != "sprompts":
        with pytest.raises(UserError, match="blocks 0 to 2"):
            init(dataclasses.replace(method, layers=(0, 3)))


def test_components_cannot_be_more_than_the_width():
    with pytest.raises(UserError, match=r"100 components .* width 32: choose at most 32"):
        init(methods.CODAPrompt(layers=(0,)))


@pytest.mark.parametrize("empty", ["e_layers", pytest.param("g_layers", marks=pytest.mark.slow)])
def test_dualprompt_trains_with_one_kind_of_prompt_alone(empty, mesh):
    """The ablation of its paper; without E-prompts nothing is looked up, so there is no query."""
    method = dataclasses.replace(toy.METHODS["dualprompt"], **{empty: ()})
    recipe = toy.recipe_for(method)
    stream = toy.make_stream()
    trainer, state = Trainer.create(
        method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    prompts = {"e_layers": state.params.pool, "g_layers": state.params.shared}
    assert [name for name, prompt in prompts.items() if prompt is None] == [empty]
    assert trainer.query_dim == (0 if empty == "e_layers" else toy.CONFIG.dim)
    assert all(leaf.size for leaf in jax.tree.leaves(state.params))
    state = trainer.begin_task(state, trainer.task(stream, 0))
    batch = next(iter(trainer.batches(stream, 0, seed=0)))
    before = toy.copy(state)
    after, metrics = trainer.step(state, batch, trainer.task(stream, 0))
    assert np.isfinite(metrics.loss)
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), before.params, after.params)
    assert moved.head.kernel
    images = toy.prepared(batch, method, trainer.model(after)).images
    model = trainer.model(after)
    query = eqx.filter_jit(method.query)(model, images)
    prediction = eqx.filter_jit(method.predict)(model, None, images, query)
    assert (prediction.selected is None) == (empty == "e_layers")
