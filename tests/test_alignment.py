"""SLCA and SLDC: what they compute from class statistics, against plain NumPy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import UserError, methods, nn
from promptax.core.settings import Optimizer
from promptax.core.types import Task
from promptax.methods import Alignment
from promptax.methods.components.alignment import masked_cross_entropy
from promptax.methods.components.drift import drift_matrix
from promptax.methods.components.gaussians import Gaussians
from promptax.methods.components.losses import soft_labels, symmetric_cross_entropy
from promptax.methods.components.moments import Moments
from promptax.methods.slca import logit_norm, shrunk
from promptax.training.trainer import Trainer

RANDOM = np.random.default_rng(0)
CLASSES, DIM = 4, 3


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def softmax(logits):
    power = np.exp(logits - logits.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def gaussians_of(feature, label, classes=CLASSES):
    empty = Gaussians.empty(classes, feature.shape[1])
    return empty.add(jnp.asarray(feature), jnp.asarray(label), jnp.ones(len(label)))


def head_of(kernel, bias):
    head = nn.Linear(*kernel.shape)
    parts = lambda head: (head.kernel, head.bias)
    return eqx.tree_at(parts, head, (jnp.asarray(kernel), jnp.asarray(bias)))


# --- alignment ---


def aligned(settings, head, factors, new=(3,)):
    """A head that is aligned after a task with some new classes."""
    loss = lambda logits, draws: masked_cross_entropy(logits, draws, factors.seen)
    task = Task.of(1, new, num_classes=CLASSES, steps=1)
    learned = factors.seen.sum()
    align = lambda head: settings(head, factors, loss, task, learned=learned, key=jr.key(0))
    return eqx.filter_jit(align)(head)


@pytest.mark.parametrize(("counted", "steps"), [("seen", 4), ("earlier", 3)])
def test_alignment_takes_the_steps_of_numpy_on_features_of_seen_classes(counted, steps):
    """SGD with momentum and decay; 3 of 4 classes seen, one of them new, and among the steps for
    all of these a last batch that is not full."""
    label = np.repeat([0, 1, 3], 10).astype(np.int32)
    factors = gaussians_of(normal(30, DIM) + label[:, None], label).factors()
    settings = Alignment(
        align_epochs=3,
        align_samples=5,
        align_batch=4,
        align_rate=0.1,
        align_decay=0.01,
        align_steps=counted,
    )
    kernel, bias = normal(DIM, CLASSES), normal(CLASSES)
    ours = aligned(settings, head_of(kernel, bias), factors)

    speed = [np.zeros_like(kernel), np.zeros_like(bias)]
    for epoch in range(3):
        draw, mix = jr.split(jr.fold_in(jr.key(0), epoch))
        draws = factors.sample(5, key=draw)
        place = np.where(draws.weight > 0, jr.uniform(mix, (20,)), 2)
        order = np.argsort(place)[:15]
        assert set(np.asarray(draws.label)[order]) == {0, 1, 3}
        rate = 0.1 * (1 + np.cos(np.pi * epoch / 3)) / 2
        for start in range(0, 4 * steps, 4):
            rows = order[start : start + 4]
            x, y = np.asarray(draws.feature)[rows], np.eye(4)[np.asarray(draws.label)[rows]]
            logits = x @ kernel + bias
            logits[:, 2] = -np.inf
            residual = (softmax(logits) - y) / len(rows)
            gradient = [x.T @ residual + 0.01 * kernel, residual.sum(0) + 0.01 * bias]
            speed = [0.9 * old + new for old, new in zip(speed, gradient, strict=True)]
            kernel, bias = kernel - rate * speed[0], bias - rate * speed[1]
    np.testing.assert_allclose(ours.kernel, kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.bias, bias, rtol=1e-4, atol=1e-5)


def test_no_epoch_of_alignment_leaves_the_head_as_it_is():
    factors = gaussians_of(normal(8, DIM), np.arange(8, dtype=np.int32) % 4).factors()
    head = head_of(normal(DIM, CLASSES), normal(CLASSES))
    assert toy.same_bits(head, aligned(Alignment(align_epochs=0), head, factors))


# --- SLCA ---


def test_the_norm_of_logits_is_the_mean_over_the_classes_of_each_task():
    logits, owner = normal(5, 7), np.array([0, 0, 1, -1, 3, 1, 1], np.int32)
    parts = [np.linalg.norm(logits[:, owner == task], axis=1) for task in (0, 1, 3)]
    ours = logit_norm(jnp.asarray(logits), jnp.asarray(owner))
    np.testing.assert_allclose(ours[:, 0], np.mean(parts, 0), rtol=1e-5)
    zero = jax.grad(lambda x: logit_norm(x, jnp.asarray(owner)).sum())(jnp.zeros((2, 7)))
    assert np.isfinite(zero).all()


def test_means_of_earlier_tasks_are_drawn_in_towards_zero():
    factors = gaussians_of(normal(8, DIM), np.arange(8, dtype=np.int32) % 4).factors()
    owner = jnp.asarray([0, 1, 2, 2])
    drawn = shrunk(factors, owner, toy.make_task(2), 0.1).mean / factors.mean
    # As the authors write it: 0.9 + 0.1 (t + 1) / (T + 1).
    wanted = 0.9 + 0.1 * np.array([1, 2, 3, 3]) / 3
    np.testing.assert_allclose(drawn, wanted[:, None].repeat(DIM, 1), rtol=1e-5)


@pytest.mark.parametrize(
    "kind", toy.slow_except([methods.SLCA], [methods.SLCA, methods.Finetune, methods.LwF])
)
def test_the_backbone_takes_a_fraction_of_the_step(kind, mesh):
    """The first step of Adam is as long as the learning rate for every value."""
    method = kind(backbone_rate=0.01)
    recipe = dataclasses.replace(toy.RECIPE, optimizer=Optimizer(learning_rate=0.16))
    stream = toy.make_stream()
    trainer, state = Trainer.create(
        method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    head = jnp.asarray(normal(32, 7))
    state = eqx.tree_at(lambda state: state.params.head.kernel, state, head)
    before, task = toy.copy(state.params), trainer.task(stream, 0)
    batch = next(trainer.batches(stream, 0, seed=0))
    after = trainer.step(state, batch, task)[0].params
    moved = jax.tree.map(lambda late, early: float(jnp.abs(late - early).max()), after, before)
    np.testing.assert_allclose(moved.head.kernel, 0.01, rtol=1e-3)  # 0.16 x 16 / 256
    np.testing.assert_allclose(moved.backbone.blocks.mlp.out.kernel, 0.0001, rtol=1e-2)


@pytest.mark.parametrize("name", ["slca", "sldc"])
@pytest.mark.slow
def test_the_head_that_is_trained_on_is_the_one_before_alignment(fitted, name):
    run = fitted(name)
    trained = run.end.method_state.head
    assert not toy.same_bits(trained, run.model.head)
    task = run.trainer.task(run.evaluator.stream, 2)
    begun = run.trainer.begin_task(toy.copy(run.end), task)
    assert toy.same_bits(begun.params.head, trained)


@pytest.mark.parametrize("name", ["slca", "sldc"])
@pytest.mark.slow
def test_statistics_of_the_last_task_are_those_of_its_features(fitted, name):
    run = fitted(name)
    stream, gaussians = run.evaluator.stream, run.end.method_state.gaussians
    images = jnp.asarray(stream.train[np.arange(133)], jnp.float32) / 255
    features = np.asarray(eqx.filter_jit(run.model.features)(images))
    for label in toy.TASKS[-1]:
        rows = features[stream.train.labels == label]
        assert gaussians.count[label] == len(rows)
        np.testing.assert_allclose(gaussians.mean[label], rows.mean(0), atol=1e-4)
        np.testing.assert_allclose(gaussians.covariance[label], np.cov(rows.T), atol=1e-4)


# --- LoRA ---


def test_a_lora_adds_a_product_to_each_kernel_and_nothing_at_first():
    vit = toy.make_vit()
    adapted = nn.AdaptedViT.init(vit, 2, key=jr.key(0))
    assert toy.same_bits(adapted.lora(vit), vit)
    part = adapted.lora.qkv
    up = jnp.asarray(normal(*part.up.shape))
    changed = eqx.tree_at(lambda lora: lora.qkv.up, adapted.lora, up)(vit)
    wanted = np.stack([vit.blocks.attention.qkv[n].reshape(32, -1) for n in range(3)])
    wanted = wanted + np.einsum("dir,dro->dio", part.down, up)
    ours = changed.blocks.attention.qkv.reshape(3, 32, -1)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert toy.same_bits(changed.blocks.mlp, vit.blocks.mlp)
    assert jnp.abs(part.down).max() <= 1 / np.sqrt(32)


# --- SLDC ---


def test_symmetric_cross_entropy_is_that_of_numpy():
    logits, classes = normal(6, 5), np.array([True, True, False, True, False])
    label = np.array([0, 1, 3, 0, 1, 3])
    p = np.where(classes, softmax(np.where(classes, logits, -np.inf)), 0)
    reverse = (p * -np.log(1e-4)).sum(1) - p[np.arange(6), label] * -np.log(1e-4)
    wanted = 0.5 * (-np.log(p[np.arange(6), label]) + reverse)
    target = jnp.asarray(np.eye(5, dtype=np.float32)[label])
    ours = symmetric_cross_entropy(jnp.asarray(logits), target, jnp.asarray(classes))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_a_mixed_example_has_both_labels_by_their_shares():
    method = toy.EVERY["own"]
    batch = toy.prepared(
        dataclasses.replace(toy.make_batch(RANDOM, 2), label=jnp.asarray([0, 1], jnp.int32)),
        method,
        None,
        mixed_label=jnp.asarray([2, 1], jnp.int32),
        share=jnp.asarray([0.75, 0.5]),
    )
    assert np.array_equal(soft_labels(batch, 3), [[0.75, 0, 0.25], [0, 1, 0]])


def test_the_drift_is_the_ridge_solution_and_nothing_where_there_are_few_images():
    before = normal(50, 6)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    after = before @ (np.eye(6) + 0.3 * normal(6, 6)) + 0.01 * normal(50, 6)
    moments = Moments(*(jnp.asarray(before.T @ x, jnp.float32) for x in (before, after)))
    x, y = before.astype(float), after.astype(float)
    solution = np.linalg.solve(x.T @ x + 0.1 * np.eye(6), x.T @ y)
    weight = np.exp(-50 / (3.0 * 6))
    wanted = (1 - weight) * solution + weight * np.eye(6)
    ours = drift_matrix(moments, jnp.int32(50), 0.1, 3.0)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    unsure = drift_matrix(moments, jnp.int32(50), 0.1, 1e9)
    np.testing.assert_allclose(unsure, np.eye(6), atol=1e-5)


def test_moved_statistics_are_those_of_moved_features():
    feature, label = normal(40, DIM), np.arange(40, dtype=np.int32) % 4
    matrix, which = normal(DIM, DIM), np.array([True, False, True, False])
    moved = gaussians_of(feature, label).moved(jnp.asarray(matrix), jnp.asarray(which))
    for c in range(4):
        rows = feature[label == c] @ matrix if which[c] else feature[label == c]
        np.testing.assert_allclose(moved.mean[c], rows.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moved.covariance[c], np.cov(rows.T), rtol=1e-3, atol=1e-5)


def strong_lora(model, seed):
    """With a LoRA that changes features."""
    lora = model.backbone.lora
    random = lambda x: 0.3 * jr.normal(jr.key(seed), x.shape)
    ups = lambda model: (model.backbone.lora.qkv.up, model.backbone.lora.out.up)
    return eqx.tree_at(ups, model, (random(lora.qkv.up), random(lora.out.up)))


def test_the_loss_has_both_distances_to_the_features_before_the_task_but_not_in_the_first():
    method = methods.SLDC(rank=2, distill=0.7, norm=0.3)
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    head = jnp.asarray(normal(32, 7))
    model = eqx.tree_at(lambda model: model.head.kernel, strong_lora(model, 0), head)
    old = strong_lora(model, 1)
    state = eqx.tree_at(lambda state: state.lora, state, old.backbone.lora)
    batch = toy.prepared(toy.make_batch(RANDOM, 6), method, model)
    batch = dataclasses.replace(batch, weight=jnp.asarray([1.0, 1, 1, 1, 1, 0]))
    features = eqx.filter_jit(lambda model: model.features(batch.images))
    now, before = (np.asarray(features(each))[:5] for each in (model, old))
    log = np.log(softmax((now @ head)[:, :2]))
    right = log[np.arange(5), np.asarray(batch.label)[:5]]
    entropy = 0.5 * (-right + (1 - np.exp(right)) * -np.log(1e-4)).mean()
    norms = [np.linalg.norm(x, axis=1) for x in (now, before)]
    apart = 0.7 * ((now - before) ** 2).mean() + 0.3 * ((norms[0] - norms[1]) ** 2).mean()
    assert apart > 0.01
    loss_of = eqx.filter_jit(method.loss)
    for index, wanted in ((0, entropy), (1, entropy + apart)):
        task = toy.make_task(index)
        loss, (logits, _) = loss_of(model, state, batch, task, key=jr.key(0))
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)
        np.testing.assert_allclose(logits[:5], now @ head, rtol=1e-3, atol=1e-4)


def test_after_a_task_gaussians_of_earlier_classes_follow_the_drift():
    method = methods.SLDC(rank=2, ridge=0.01, alignment=Alignment(align_epochs=0))
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    old, new = strong_lora(model, 0), strong_lora(model, 1)
    start = state.gaussians.add(
        jnp.asarray(normal(9, 32)), jnp.asarray([0, 1, 4] * 3, jnp.int32), jnp.ones(9)
    )
    parts = lambda state: (state.gaussians, state.lora)
    state = eqx.tree_at(parts, state, (start, old.backbone.lora))
    batch = toy.prepared(toy.make_batch(RANDOM, 12, (2, 3, 4)), method, model)
    task = toy.make_task(1, (2, 3, 4))
    task = dataclasses.replace(task, seen=jnp.arange(7) < 5, examples=jnp.int32(12))

    @eqx.filter_jit
    def conclude(model, state):
        model, state = method.observe(model, state, batch, task, key=jr.key(0))
        return method.end_task(model, state, task, key=jr.key(0))[1]

    after = conclude(new, state)
    features = eqx.filter_jit(lambda model: model.features(batch.images))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    x, y = (unit(np.asarray(features(each), float)) for each in (old, new))
    matrix = np.linalg.solve(x.T @ x + 0.01 * np.eye(32), x.T @ y)
    weight = np.exp(-12 / 32)
    matrix = (1 - weight) * matrix + weight * np.eye(32)
    ours = after.gaussians
    wanted = start.mean[:2] @ matrix
    np.testing.assert_allclose(ours.mean[:2], wanted, rtol=1e-3, atol=1e-4)
    covariance = matrix.T @ start.covariance[0] @ matrix
    np.testing.assert_allclose(ours.covariance[0], covariance, rtol=1e-3, atol=1e-4)
    assert ours.count[4] == 3 + (np.asarray(batch.label) == 4).sum()
    assert toy.same_bits(after.lora, new.backbone.lora)
    assert not after.drift.gram.any()


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: methods.SLCA(backbone_rate=2.0), "backbone rate is 2.0"),
        (lambda: methods.SLCA(temperature=0.0), "temperature is 0.0"),
        (lambda: methods.SLCA(shrink=1.0), "shrink is 1.0"),
        (lambda: methods.SLDC(distill=-1.0), "distill is -1.0"),
        (lambda: methods.SLDC(norm=float("nan")), "norm is nan"),
        (lambda: methods.SLDC(backbone_rate=1.5), "backbone rate is 1.5"),
        (lambda: methods.SLDC(ridge=0.0), "ridge is 0.0"),
        (lambda: methods.SLDC(smoothing=float("inf")), "smoothing is inf"),
        (lambda: Alignment(align_epochs=-1), "align epochs is -1"),
        (lambda: Alignment(align_samples=0), "features to align by is 0"),
        (lambda: Alignment(align_batch=0), "align batch is 0"),
        (lambda: Alignment(align_rate=0.0), "align rate is 0.0"),
        (lambda: Alignment(align_floor=2.0), "align floor is 2.0"),
        (lambda: Alignment(align_decay=-1.0), "align decay is -1.0"),
        (lambda: methods.SLDC(moved_ridge=-1.0), "moved ridge is -1.0"),
        (lambda: nn.AdaptedViT.init(toy.make_vit(), 33, key=jr.key(0)), "rank is 33"),
    ],
)
def test_hyperparameters_out_of_range_are_user_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_lora_needs_a_vit():
    resnet = nn.ResNet(nn.resnet_config("resnet-18-small"), key=jr.key(0))
    with pytest.raises(UserError, match="LoRA needs a ViT"):
        methods.SLDC().init(resnet, toy.make_stream(), key=jr.key(0))
