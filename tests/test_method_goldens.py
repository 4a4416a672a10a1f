"""Prompt methods and classifier alignment against arrays that the authors' own code computed.

Each file of `tests/data` that is read here holds what published code gave on a tiny model, in
float32 on a CPU; its `meta` names the repository, the commit and the function. `method_vit.npz` has
the leaves of the ViT that `coda`, `hide` and `sprompts` share. Where promptax differs on purpose, a
test says by how much.
"""

import dataclasses
import functools
import operator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import methods, nn
from promptax.core.types import Batch, Task
from promptax.methods import Alignment
from promptax.methods.base import is_trained
from promptax.methods.components import alignment
from promptax.methods.components.drift import drift_matrix
from promptax.methods.components.gaussians import Draws, Gaussians
from promptax.methods.components.losses import contrastive_in_shares, symmetric_cross_entropy
from promptax.methods.components.moments import Moments
from promptax.methods.slca import ClassStatistics, shrunk
from promptax.nn.prompt import l2_normalize

DATA = Path(__file__).parent / "data" / "methods"
CONFIG = nn.ViTConfig(patch=4, dim=32, depth=6, heads=4, mlp=128, image=16, activation="gelu")


@functools.cache
def golden(name):
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def shared_vit():
    leaves, tree = jax.tree.flatten(nn.ViT(CONFIG, key=jr.key(0)))
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(golden("method_vit")["leaves"], cuts)
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(tree, [jnp.asarray(part.reshape(leaf.shape)) for part, leaf in pairs])


def with_arrays(model, arrays, *names):
    """The model with arrays of a file in the place of its own: `head.kernel` is `head_kernel`."""
    where = lambda model: [operator.attrgetter(name)(model) for name in names]
    return eqx.tree_at(
        where, model, [jnp.asarray(arrays[name.replace(".", "_")]) for name in names]
    )


def batch_of(method, model, images, labels):
    prepared = jnp.asarray(images / 255, jnp.float32)
    return Batch(
        images=prepared,
        label=jnp.asarray(labels, jnp.int32),
        weight=jnp.ones(len(labels)),
        query=eqx.filter_jit(method.query)(model, prepared),
        raw=jnp.asarray(images),
        is_new=jnp.ones(len(labels), bool),
    )


def training_step(method, model, state, batch, task):
    """Loss, logits, and gradients as a step applies them: 0 where the task trains nothing."""
    factors = method.trainable(model, task)
    params, frozen = eqx.partition(model, is_trained(factors))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grads(params):
        loss, (logits, _) = method.loss(
            eqx.combine(params, frozen), state, batch, task, key=jr.key(0)
        )
        return loss, logits

    (loss, logits), grads = loss_and_grads(params)
    mask = lambda grad, factor: None if grad is None else jnp.where(factor == 0, 0, grad)
    is_none = lambda leaf: leaf is None
    return loss, logits, jax.tree.map(mask, grads, factors, is_leaf=is_none)


def stream_of(tasks, classes_of):
    """A stream of a number of tasks; methods take nothing but sizes from it."""
    stream = toy.make_stream()
    parts = tuple(
        dataclasses.replace(stream.tasks[0], classes=tuple(classes_of(number)))
        for number in range(tasks)
    )
    last = max(max(part.classes) for part in parts)
    return dataclasses.replace(stream, tasks=parts, class_names=tuple("c" * (last + 1)))


def assert_close(ours, theirs, tolerance=1e-5):
    """Within a share of the largest value: gradients have entries of rounding errors alone."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# --- CODA-Prompt: models/zoo.py ---


def test_coda_prompt_has_the_losses_logits_and_gradients_of_the_authors():
    arrays = golden("coda")
    method = methods.CODAPrompt(components=20, length=8, orthogonality=0.1)
    stream = stream_of(10, lambda task: (2 * task, 2 * task + 1))
    model, state = method.init(shared_vit(), stream, key=jr.key(0))
    names = ("prompt", "key", "attention", "head.kernel", "head.bias")
    model = with_arrays(model, arrays, *names)
    batch = batch_of(method, model, arrays["images"], arrays["labels"])
    assert_close(batch.query, arrays["query"])
    task = Task.of(3, (6, 7), num_classes=20, steps=1, seen=range(8))
    loss, logits, grads = training_step(method, model, state, batch, task)
    assert_close(loss, arrays["cross_entropy"] + arrays["penalty"])
    assert_close(logits, arrays["logits"])
    for name in ("prompt", "key", "attention"):
        assert_close(getattr(grads, name), arrays[f"grad_{name}"])
    assert_close(grads.head.kernel, arrays["grad_head"])


# --- HiDe-Prompt: peft/prompt/hide_prompt.py, engines/hide_promtp_wtp_and_tap_engine.py ---


def test_hide_prompt_has_the_prefix_losses_and_gradients_of_the_authors():
    """But for keys and values, which their reshape mixes: the arrays are of a transpose."""
    arrays = golden("hide")
    method = methods.HiDePrompt(length=5, ensemble=0.3, contrast=0.5)
    stream = stream_of(3, lambda task: (2 * task, 2 * task + 1))
    model, state = method.init(shared_vit(), stream, key=jr.key(0))
    model = with_arrays(model, arrays, "prompt", "head.kernel", "head.bias")
    count = jnp.where(jnp.arange(6) < 4, 5.0, 0)
    mean = jnp.zeros((6, 32)).at[:4].set(arrays["means"])
    prompted = Gaussians(count, mean, Gaussians.empty(6, 32).scatter)
    state = eqx.tree_at(lambda state: state.prompted, state, prompted)
    task = Task.of(2, (4, 5), num_classes=6, steps=1, seen=range(6))
    assert_close(model.ensemble(task, method.ensemble), arrays["p_t"])
    batch = batch_of(method, model, arrays["images"], arrays["labels"])
    loss, logits, grads = training_step(method, model, state, batch, task)
    assert_close(loss, arrays["cross_entropy"] + arrays["contrastive"])
    assert_close(logits, arrays["logits"])
    assert_close(grads.prompt, arrays["grad_prompt"])
    assert_close(grads.head.kernel, arrays["grad_head"])


def test_hide_prompt_contrasts_a_batch_in_shares_as_the_authors_do_on_several_devices():
    """Twice the features of the file in two shares have the contrastive term of the file."""
    arrays = golden("hide")
    means = jnp.asarray(arrays["means"])
    features = jnp.tile(jnp.asarray(arrays["features"]), (2, 1))
    term = lambda share: eqx.filter_jit(contrastive_in_shares)(
        means, jnp.ones(4), features, jnp.ones(24), share=share, temperature=0.8
    )
    wanted = arrays["contrastive"] / 0.5
    assert_close(term(12), wanted)
    # All 24 at once: each row is to be told apart from more others.
    assert 1.5 * term(12) < term(24) < 1.6 * term(12)


@pytest.mark.parametrize("kind", ["published", "matching"])
def test_hide_prompt_aligns_heads_as_the_authors_do(kind, monkeypatch):
    """`published`: their code as it acts; `matching`: with the decay and steps of our defaults,
    by which entries of the kernel differ by up to a quarter of the largest one."""
    arrays = golden("hide_tap")
    order = jnp.asarray(arrays["perm"])
    label = jnp.repeat(jnp.arange(6, dtype=jnp.int32), 20)
    draws = Draws(jnp.asarray(arrays["draws"]).reshape(120, 8)[order], label[order], jnp.ones(120))
    monkeypatch.setattr(alignment, "drawn_features", lambda *_, key: draws)
    settings = Alignment(align_epochs=30, align_samples=20, align_batch=20, align_rate=0.005)
    if kind == "published":
        settings = dataclasses.replace(settings, align_decay=0.0, align_steps="earlier")
    head = eqx.tree_at(lambda h: h.kernel, nn.Linear(8, 6), jnp.asarray(arrays["kernel0"]))
    task = Task.of(2, (4, 5), num_classes=6, steps=1, seen=range(6))
    loss = lambda logits, draws: alignment.masked_cross_entropy(logits, draws, task.seen)
    factors = Gaussians.empty(6, 8).factors()
    ours = eqx.filter_jit(settings)(head, factors, loss, task, learned=jnp.int32(6), key=jr.key(0))
    assert_close(ours.kernel, arrays[f"kernel_{kind}"])
    if kind == "published":
        assert_close(ours.bias, arrays["bias_published"], 1e-4)
        apart = np.abs(arrays["kernel_matching"] - arrays["kernel_published"]).max()
        assert 0.25 < apart / np.abs(arrays["kernel_published"]).max() < 0.27


# --- S-Prompts: models/sinet.py, methods/sprompt.py ---


def test_s_prompts_has_the_loss_gradients_choices_and_logits_of_the_authors():
    arrays = golden("sprompts")
    method = methods.SPrompts(length=5, clusters=5)
    stream = stream_of(3, lambda task: range(50))
    model, state = method.init(shared_vit(), stream, key=jr.key(0))
    model = with_arrays(model, arrays, "prompt", "head.kernel", "head.bias")
    parts = lambda state: (state.centroid, state.known)
    state = eqx.tree_at(parts, state, (jnp.asarray(arrays["centroid"]), jnp.ones((3, 50), bool)))
    batch = batch_of(method, model, arrays["images"], arrays["labels"])
    task = Task.of(2, range(50), num_classes=50, steps=1)
    loss, logits, grads = training_step(method, model, state, batch, task)
    assert_close(loss, arrays["loss"])
    assert_close(logits, arrays["logits"])
    assert_close(grads.prompt[2], arrays["grad_prompt"])
    assert_close(grads.head.kernel[2], arrays["grad_head"])
    test = batch_of(method, model, arrays["test"], np.zeros(48))
    predicted = eqx.filter_jit(method.predict)(model, state, test.images, test.query)
    assert predicted.selected is not None
    assert np.array_equal(predicted.selected[:, 0], arrays["selected"])
    assert_close(predicted.logits, arrays["test_logits"])


# --- SLCA: models/slca.py, _stage2_compact_classifier ---


def test_slca_aligns_the_head_as_the_authors_do(monkeypatch):
    arrays = golden("slca_alignment")
    vit = nn.ViT(nn.ViTConfig(patch=8, dim=24, depth=1, heads=4, mlp=8, image=16), key=jr.key(0))
    method = methods.SLCA(train_backbone=False)
    model, _ = method.init(vit, stream_of(3, lambda task: (2 * task, 2 * task + 1)), key=jr.key(0))
    head = eqx.tree_at(
        lambda head: (head.kernel, head.bias),
        model.head,
        (jnp.asarray(arrays["kernel_before"]), jnp.asarray(arrays["bias_before"])),
    )
    model = eqx.tree_at(lambda model: model.head, model, head)
    scatter = jnp.asarray(9 * arrays["covariance"])
    gaussians = Gaussians(jnp.full(6, 10.0), jnp.asarray(arrays["mean"]), scatter)
    owner = jnp.asarray([0, 0, 1, 1, 2, 2], jnp.int32)
    state = ClassStatistics(gaussians, head, owner)
    task = Task.of(2, (4, 5), num_classes=6, steps=1, seen=range(6))
    ours = shrunk(gaussians.factors(), owner, task, method.shrink)
    assert_close(ours.mean, arrays["drawn_in_mean"])

    order = jnp.asarray(arrays["order"], jnp.int32)
    feature = jnp.asarray(arrays["draws"]).reshape(5, 1536, 24)
    label = jnp.repeat(jnp.arange(6, dtype=jnp.int32), 256)

    def in_order(factors, each, epoch, *, key):
        rows = order[epoch]
        return Draws(feature[epoch][rows], label[rows], jnp.ones(1536))

    monkeypatch.setattr(alignment, "drawn_features", in_order)
    after, state = eqx.filter_jit(method.end_task)(model, state, task, key=jr.key(0))
    assert_close(after.head.kernel, arrays["kernel_after"], 1e-4)
    assert_close(after.head.bias, arrays["bias_after"], 1e-4)
    assert toy.same_bits(state.head, head)


# --- SLDC: models/sldc_modules.py ---


@pytest.mark.parametrize("ridge", [0.01, 0.0])
def test_sldc_moves_statistics_as_the_authors_do(ridge):
    """With 0.01 added to the variances of a class that is moved; by default nothing is, which is
    all that differs."""
    arrays = golden("sldc_drift")
    before, after = jnp.asarray(arrays["before"]), jnp.asarray(arrays["after"])
    moments = Moments.of(l2_normalize(before), l2_normalize(after), jnp.ones(400))
    default = methods.SLDC()
    matrix = drift_matrix(moments, jnp.int32(400), default.ridge, default.smoothing)
    label = jnp.asarray(arrays["old_label"], jnp.int32)
    gaussians = Gaussians.empty(10, 40).add(
        jnp.asarray(arrays["old_feature"]), label, jnp.ones(200)
    )
    moved = gaussians.moved(matrix, jnp.ones(10, bool), ridge)
    # The smallest eigenvalues of their Gram matrix are of the size of float32's rounding errors.
    assert_close(moved.mean, arrays["mean_moved"], 5e-4)
    theirs = arrays["cov_moved"] - (0.01 - ridge) * np.eye(40)
    assert_close(moved.covariance, theirs, 1e-3)


def mean_entropy(logits, label, *, clamped):
    target = jax.nn.one_hot(label, logits.shape[1])
    classes = jnp.ones(logits.shape[1], bool)
    return symmetric_cross_entropy(logits, target, classes, clamped=clamped).mean()


def test_sldc_has_the_symmetric_cross_entropy_of_the_authors_if_clamped():
    arrays = golden("sldc_sce")
    logits, label = jnp.asarray(arrays["logits"]), jnp.asarray(arrays["label"], jnp.int32)
    of = lambda clamped: jax.value_and_grad(functools.partial(mean_entropy, clamped=clamped))
    loss, grad = of(clamped=True)(logits, label)
    assert_close(loss, arrays["loss"])
    assert_close(grad, arrays["grad"])
    loss, grad = of(clamped=False)(logits, label)
    assert_close(loss, arrays["loss"], 0.02)


def test_without_clamps_an_example_that_is_far_from_right_keeps_its_gradient():
    """At a gap of 17 the probability is 4e-8: below the clamp of 1e-7."""
    logits = jnp.asarray([[0.0, 17.0]])
    label = jnp.zeros(1, jnp.int32)
    grad = lambda clamped: jax.grad(mean_entropy)(logits, label, clamped=clamped)[0, 0]
    np.testing.assert_allclose(grad(clamped=False), -0.5, rtol=1e-5)
    assert abs(grad(clamped=True)) < 1e-3
