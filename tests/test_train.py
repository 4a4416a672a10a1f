"""The training step and the loop around it."""

import itertools
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from promptax import UserError, methods, nn
from promptax.core.settings import Optimizer, Schedule
from promptax.core.sharding import make_mesh, replicate, split
from promptax.core.types import Batch, RawBatch
from promptax.methods.base import is_trained
from promptax.methods.components.losses import cross_entropy, weighted_mean
from promptax.methods.registry import builtin_methods
from promptax.training.compiles import count_compiles
from promptax.training.finite import NonFinite, check_weights
from promptax.training.loop import StepDone, TaskEnded, run_stream, train_task
from promptax.training.optimizer import UpdateRule
from promptax.training.trainer import Trainer, traced

EVERY = pytest.mark.parametrize("name", toy.METHODS)
SOME = pytest.mark.parametrize("name", toy.slow_except(["l2p"], toy.METHODS))
"""Every method, but only L2P in the fast suite."""


def create(method, mesh, **optimizer):
    recipe = toy.recipe_for(method)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, **optimizer))
    stream = toy.make_stream()
    return Trainer.create(method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0))


@SOME
def test_a_run_compiles_each_step_once_whatever_its_tasks(fitted, name):
    stages = fitted(name).evaluator.stream.tasks
    sizes = {(len(stage.classes), len(stage.index)) for stage in stages}
    assert len(sizes) == 3
    assert {kind: fitted(name).compiles.count[kind] for kind in ("train", "evaluate", "query")} == {
        "train": 1,
        "evaluate": 1,
        "query": 1,
    }


def test_a_trainer_is_made_by_as_many_programs_however_many_leaves_there_are(mesh):
    """Each takes long to compile on a GPU, however little it does."""
    counts = []
    for options in ({}, {"layer_scale": True, "qk_norm": True, "registers": 2}):
        config = replace(toy.CONFIG, **options)
        vit = eqx.filter_jit(nn.ViT)(config, key=jr.key(0), dtype="bfloat16")
        inputs = (methods.Finetune(), vit, toy.make_stream(), toy.RECIPE)
        jax.clear_caches()
        with count_compiles() as compiles:
            _, state = Trainer.create(*inputs, mesh=mesh, key=jr.key(0))
            check_weights(state, 0)
        counts.append(compiles.count["other"])
    assert counts[0] == counts[1]


def test_backbone_and_key_may_lie_on_different_devices(mesh):
    devices = jax.devices()
    vit = jax.device_put(toy.make_vit(), devices[1])
    key = jax.device_put(jr.key(0), devices[2])
    inputs = (methods.Finetune(), vit, toy.make_stream(), toy.RECIPE)
    _, state = Trainer.create(*inputs, mesh=mesh, key=key)
    assert {device for leaf in jax.tree.leaves(state) for device in leaf.devices()} == {devices[0]}
    assert not vit.blocks.mlp.out.kernel.is_deleted()


def compiled(method, recipe, mesh):
    """How often each step compiles in a run of two tasks, and what is trained in it."""
    stream = toy.make_stream().first(2)
    vit = toy.make_vit()
    trainer, state = Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(0))
    with count_compiles() as compiles:
        events = run_stream(trainer, stream, state, seed=0)
        *_, end = (event for event in events if isinstance(event, TaskEnded))
    return compiles.count, (end.state.params, end.state.method_state)


def test_a_sweep_over_numbers_compiles_once(mesh):
    recipe = replace(
        toy.RECIPE,
        optimizer=Optimizer("adamw", 0.5, schedule="cosine", warmup=0.1, weight_decay=0.1),
        schedule=replace(toy.RECIPE.schedule, epochs=2),
    )
    changes = {
        "learning_rate": 0.25,
        "warmup": 0.3,
        "weight_decay": 0.2,
        "clip_norm": 0.01,
        "skip_nonfinite": 3,
    }
    method = toy.Pixels()
    count, trained = compiled(method, recipe, mesh)
    assert count["train"] <= 1
    for name, value in changes.items():
        optimizer = replace(recipe.optimizer, **{name: value})
        count, other = compiled(method, replace(recipe, optimizer=optimizer), mesh)
        assert not count, f"{name}: {count}"
        assert name == "skip_nonfinite" or not toy.same_bits(trained, other), name
    longer = replace(recipe.schedule, epochs=3)
    sparse = replace(recipe.evaluation, every=2, classes="all")
    count, _ = compiled(method, replace(recipe, schedule=longer, evaluation=sparse), mesh)
    assert not count
    # Only what augments images compiles again.
    augmented = replace(recipe.images, flip=True, crop_area=(0.5, 1.0))
    count, _ = compiled(method, replace(recipe, images=augmented), mesh)
    assert (count["train"], count["evaluate"], count["query"]) == (1, 0, 0)


@pytest.mark.parametrize("kind", builtin_methods().values())
def test_numbers_of_a_method_are_no_key_of_a_compile(kind):
    method = next(method for method in toy.EVERY.values() if type(method) is kind)
    halved = jax.tree.map(lambda leaf: leaf / 2 if isinstance(leaf, float) else leaf, method)
    one, two = traced(method), traced(halved)
    numbers = [leaf for leaf in jax.tree.leaves(method) if isinstance(leaf, float)]
    static = lambda tree: eqx.filter(tree, eqx.is_array, inverse=True)
    assert len(jax.tree.leaves(eqx.filter(one, eqx.is_array))) == len(numbers)
    assert static(one) == static(two)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(two))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("l2p", {"pull": 0.1}),
        ("dualprompt", {"pull": 0.1}),
        ("finetune", {"backbone_rate": 0.5}),
        ("coda", {"orthogonality": 0.2}),
        ("hide", {"temperature": 0.4, "contrast": 0.2, "ensemble": 0.1, "head_rate": 0.5}),
        ("ewc", {"coefficient": 3.0, "gamma": 0.5}),
        ("lwf", {"coefficient": 3.0, "temperature": 1.0}),
        ("derpp", {"alpha": 0.2, "beta": 0.1}),
        ("slca", {"backbone_rate": 0.2, "temperature": 0.2, "shrink": 0.2}),
        ("sldc", {"backbone_rate": 0.2, "distill": 0.5, "norm": 0.3, "smoothing": 2.0}),
        ("ranpac", {"ridge": 2.0}),
    ],
)
def test_a_sweep_over_the_numbers_of_a_method_compiles_nothing_again(mesh, name, changes):
    method = toy.EVERY[name]
    recipe = toy.recipe_for(method)
    count, trained = compiled(method, recipe, mesh)
    assert count["train"] <= 1
    count, other = compiled(replace(method, **changes), recipe, mesh)
    assert not count
    assert not toy.same_bits(trained, other)


@SOME
def test_eight_devices_give_the_losses_of_one(fitted, name):
    """Votes (two groups on each device), masks, augmentation and transfer included."""

    def losses(devices):
        trainer, state = create(toy.METHODS[name], make_mesh(devices))
        stream = toy.make_stream()
        for stage in range(2):
            task = trainer.task(stream, stage)
            state = trainer.begin_task(state, task)
            for batch in itertools.islice(trainer.batches(stream, stage, seed=0), 3):
                assert len(batch.image.sharding.device_set) == devices
                state, metrics = trainer.step(state, batch, task)
                yield metrics.loss

    one, eight = (np.asarray(list(losses(devices))) for devices in (1, 8))
    assert len(set(one.tolist())) > 2
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5)


HEAD = 32 * 7 + 7
VIT = sum(leaf.size for leaf in jax.tree.leaves(toy.make_vit()))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("l2p", 6 * 2 * 32 + 6 * 32 + HEAD),
        pytest.param(
            "dualprompt",
            2 * 2 * 2 * 2 * 32 + 2 * 32 + 2 * 2 * 2 * 32 + HEAD,
            marks=pytest.mark.slow,
        ),
        pytest.param("finetune", VIT + HEAD, marks=pytest.mark.slow),
        ("linear", HEAD),
    ],
)
def test_only_trainable_leaves_have_optimizer_state_and_move(fitted, name, count):
    run = fitted(name)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))
    assert size(run.start.params) == count
    assert size(run.start.opt_state) == 2 * count + 1  # Adam: two moments and the step
    backbone = run.model.backbone
    if name == "finetune":
        pairs = zip(*(jax.tree.leaves(vit) for vit in (backbone, toy.make_vit())), strict=True)
        assert not any(np.array_equal(*pair) for pair in pairs)
    else:
        assert toy.same_bits(backbone, toy.make_vit())
    before, after = (jax.tree.leaves(tree) for tree in (run.start.params, run.end.params))
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sprompts", 3 * (2 * 32 + HEAD)),
        ("hide", 3 * 2 * 2 * 2 * 32 + HEAD),
        ("ncm", 0),
        ("ranpac", 0),
    ],
)
def test_what_is_written_between_tasks_is_no_parameter(mesh, name, count):
    """Centroids, statistics, solved heads and a random projection have no gradient."""
    _, state = create(toy.EVERY[name], mesh)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (size(state.params), size(state.opt_state)) == (count, 2 * count + 1)


def test_a_trained_backbone_leaves_the_queries_alone():
    method = toy.L2P(pool_size=4, top_k=2, train_backbone=True)
    model, _ = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    params, frozen = eqx.partition(model, is_trained(method.trainable(model, toy.make_task())))
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(toy.make_vit())) + 4
    assert toy.same_bits(frozen, toy.make_vit())


@pytest.mark.parametrize("reset", [True, False])
def test_a_task_begins_with_a_fresh_optimizer_only_if_asked(mesh, reset):
    trainer, state = create(toy.Pixels(), mesh, reset=reset)
    fresh = toy.copy(state.opt_state)
    for _ in range(2):
        batch = toy.make_batch(np.random.default_rng(0))
        state, _ = trainer.step(state, batch, toy.make_task())
    kept = toy.copy(state.opt_state)
    state = trainer.begin_task(state, toy.make_task(1))
    assert toy.same_bits(state.opt_state, fresh if reset else kept)
    assert (int(state.step), int(state.task_step)) == (2, 0)


def test_the_rate_warms_up_then_falls_as_a_cosine_in_proportion_to_the_batch():
    optimizer = Optimizer(learning_rate=0.1, schedule="cosine", warmup=0.2)
    rule = UpdateRule.of(optimizer, batch_size=64, epochs=5)
    rates = jax.vmap(rule.learning_rate, (0, None))(jnp.arange(10), jnp.int32(10))
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, 0.1 * 64 / 256 * np.r_[0.5, 1, cosine], rtol=1e-5)


def test_a_rate_in_steps_falls_to_a_tenth_once():
    optimizer = Optimizer(learning_rate=2.0, schedule="step", step_at=0.8)
    rule = UpdateRule.of(optimizer, batch_size=128, epochs=5)
    rates = [rule.learning_rate(jnp.int32(n), jnp.int32(10)) for n in range(10)]
    np.testing.assert_allclose(rates, [1.0] * 8 + [0.1] * 2, rtol=1e-6)


def rates_by_epoch(optimizer: Optimizer, epochs: int, steps: int) -> np.ndarray:
    """The rate of every step at a batch of 256, and that of the epochs that the steps are in.

    A step is in the epoch in which its middle lies: epochs need not end with a batch.
    """
    rule = UpdateRule.of(optimizer, 256, epochs)
    rate = jax.jit(jax.vmap(rule.learning_rate, (0, None)))
    rates = np.asarray(rate(jnp.arange(steps), jnp.int32(steps)))
    starts = np.ceil(np.arange(epochs) * steps / epochs - 0.5).astype(int)
    for part in np.split(rates, starts[1:]):
        assert (part == part[0]).all()
    return rates[starts]


@pytest.mark.parametrize("steps", [20, 780, 782])
def test_a_quarter_cosine_has_the_rates_of_coda_prompts_code_in_every_epoch(steps):
    golden = np.load(Path(__file__).parent / "data" / "methods" / "schedules.npz")["coda_cifar"]
    optimizer = Optimizer(learning_rate=0.001, schedule="quarter_cosine")
    rates = rates_by_epoch(optimizer, len(golden), steps)
    np.testing.assert_allclose(rates, golden, rtol=1e-5)
    # The usual cosine, half a period of steps, trains a quarter less in all.
    half = 0.001 * 0.5 * (1 + np.cos(np.pi * np.arange(780) / 780))
    np.testing.assert_allclose(half.mean() / golden.mean(), 0.731, atol=1e-3)


@pytest.mark.parametrize("floor", [0.0, 1 / 3])
def test_a_cosine_by_epoch_has_the_rates_of_pytorchs_scheduler(floor):
    optimizer = Optimizer(
        learning_rate=0.01, schedule="cosine", schedule_interval="epoch", schedule_floor=floor
    )
    rates = rates_by_epoch(optimizer, epochs=20, steps=1870)
    lowest = 0.01 * floor  # eta_min
    expected = lowest + (0.01 - lowest) * 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@given(
    st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    st.floats(0, 1),
    st.sampled_from(["constant", "cosine", "quarter_cosine", "step"]),
    st.integers(1, 60),
    st.sampled_from(["step", "epoch"]),
)
def test_the_rate_never_leaves_zero_to_peak_and_a_constant_one_reaches_it(
    place, warmup, schedule, epochs, interval
):
    steps, step = place
    optimizer = Optimizer(
        learning_rate=0.5, schedule=schedule, schedule_interval=interval, warmup=warmup
    )
    rule = UpdateRule.of(optimizer, 128, epochs)
    rate, peak = float(rule.learning_rate(jnp.int32(step), jnp.int32(steps))), 0.25
    assert 0 < rate <= peak * 1.0001
    if schedule == "constant" and step + 1 >= warmup * steps:
        np.testing.assert_allclose(rate, peak, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"name": "adam"}, optax.adam),
        ({"name": "adamw", "weight_decay": 0.1}, lambda rate: optax.adamw(rate, weight_decay=0.1)),
        ({"name": "sgd"}, lambda rate: optax.sgd(rate, 0.9)),
        (
            {"name": "sgd", "weight_decay": 0.1},
            lambda rate: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate, 0.9)),
        ),
        ({"name": "sgd", "nesterov": True}, lambda rate: optax.sgd(rate, 0.9, nesterov=True)),
        (
            {"name": "sgd", "momentum": 0.0, "clip_norm": 0.5},
            lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate)),
        ),
    ],
)
def test_updates_are_those_of_optax(mesh, settings, reference):
    trainer, state = create(toy.Pixels(), mesh, **{"clip_norm": None, **settings})
    params = toy.copy(state.params["head"])
    optimizer = reference(0.5 * 16 / 256)
    moments = optimizer.init(params)

    @jax.jit
    @jax.value_and_grad
    def loss_of(head, batch):
        logits = batch.image.reshape(16, -1) / 255 @ head.kernel + head.bias
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :2], batch.label).mean()

    for n in range(4):
        batch = toy.make_batch(np.random.default_rng(n))
        loss, grads = loss_of(params, batch)
        update, moments = optimizer.update(grads, moments, params)
        params = eqx.apply_updates(params, update)
        state, metrics = trainer.step(state, batch, toy.make_task())
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-4)
        norm = optax.tree.norm(grads)
        np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)  # before clipping
        assert "clip_norm" not in settings or norm > 0.5
    ours = state.params["head"]
    np.testing.assert_allclose(ours.kernel, params.kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.bias, params.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", toy.slow_except(["l2p"], ["l2p", "dualprompt", "finetune"]))
def test_what_stands_in_the_padding_changes_no_bit_of_a_step(fitted, mesh, name):
    """Not even a label whose logit is masked, which by itself would make the loss infinite."""
    run, padded = fitted(name), jnp.arange(16) >= 13
    task = replicate(toy.make_task(), mesh)

    def step(seed, classes):
        batch = toy.make_batch(np.random.default_rng(0))
        other = toy.make_batch(np.random.default_rng(seed), classes=classes)
        image = jnp.where(padded[:, None, None, None], other.image, batch.image)
        label = jnp.where(padded, other.label, batch.label)
        batch = RawBatch(image, label, (~padded).astype(jnp.float32))
        batch = jax.device_put(batch, split(mesh))
        state = run.trainer.begin_task(toy.copy(run.start), task)
        return run.trainer.step(state, batch, task)

    first, second = step(1, (0, 1)), step(2, (5, 6))
    assert np.isfinite(first[1].loss)
    assert toy.same_bits(first, second)


@pytest.mark.parametrize("name", toy.slow_except(["l2p"], ["l2p", "linear"]))
def test_loss_and_gradient_with_padding_are_those_of_the_examples_alone(name):
    method, task = toy.METHODS[name], toy.make_task()
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    params, frozen = eqx.partition(model, is_trained(method.trainable(model, task)))
    whole = toy.prepared(toy.make_batch(np.random.default_rng(0)), method, model)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def run(params, batch):
        model = eqx.combine(params, frozen)
        return method.loss(model, state, batch, task, key=jr.key(0))[0]

    weight = (jnp.arange(16) < 12).astype(jnp.float32)
    padded = run(params, replace(whole, weight=weight))
    alone = run(params, jax.tree.map(lambda x: x[:12], whole))
    for ours, wanted in zip(*map(jax.tree.leaves, (padded, alone)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_step_and_task(mesh):
    """The first task has 23 images: 3 epochs in batches of 16 are 5 steps."""
    with pytest.raises(NonFinite, match=r"not finite since step 6 \(task 2; .*\): lower the"):
        toy.run(toy.Pixels(poison=1), mesh)


def stages_with(mesh, skip):
    """The toy stream where no loss of its second task, of 17 steps, is finite."""
    trainer, state = create(toy.Pixels(poison=1), mesh, skip_nonfinite=skip)
    for event in run_stream(trainer, toy.make_stream(), state, seed=0):
        if isinstance(event, TaskEnded):
            yield jax.device_get(toy.copy(event.state))


def test_a_step_that_is_not_finite_is_left_out_and_counted(mesh):
    first, second, third = stages_with(mesh, skip=17)
    assert toy.same_bits(first.params, second.params)
    assert not toy.same_bits(second.params, third.params)
    faults = [(int(state.faults.count), int(state.faults.step)) for state in (first, third)]
    assert faults == [(0, -1), (int(second.task_step), int(first.step))]
    assert third.faults.leaf == -1, "the loss was lost, not a gradient"


def test_more_than_may_be_skipped_stop_the_run(mesh):
    with pytest.raises(NonFinite, match="more than 3 steps, first in step 6"):
        list(stages_with(mesh, skip=3))


@pytest.mark.parametrize(
    ("unused", "words"),
    [
        (jnp.inf, r"weight \['unused'\] is not finite"),
        (1.0, r"all weights are finite, the gradient of \['head'\].kernel is not"),
    ],
    ids=["weight", "gradient"],
)
def test_the_first_bad_leaf_is_named(mesh, unused, words):
    class Split(toy.Pixels):
        """Its gradient is lost on the way back; its loss is not."""

        def loss(self, model, state, batch, task, *, key):
            loss, rest = super().loss(model, state, batch, task, key=key)
            lost = jnp.sqrt(0 * model["head"].kernel).sum() + 0 * model["unused"].sum()
            return loss + lost, rest

    trainer, state = create(Split(), mesh)
    trainer = eqx.tree_at(lambda t: t.setup.frozen["unused"], trainer, jnp.full(3, unused))
    with pytest.raises(NonFinite, match=rf"since step 1 \(task 1; {words}\)"):
        list(train_task(trainer, state, toy.make_stream(), 0, seed=0))


def test_weights_that_are_solved_for_have_to_be_finite_too(mesh):
    """A ridge that is lost in rounding leaves an indefinite matrix."""
    with pytest.raises(NonFinite, match=r"last step of task 1, weight .*\.kernel is not finite"):
        toy.run(methods.RanPAC(width=256, ridge=1e-30), mesh)


def test_a_loss_that_is_lost_stops_a_task_long_before_its_end(mesh):
    trainer, state = create(toy.Pixels(poison=0), mesh)
    schedule = replace(trainer.recipe.schedule, epochs=1000)
    trainer = replace(trainer, recipe=replace(trainer.recipe, schedule=schedule))
    steps = []
    with pytest.raises(NonFinite):
        steps.extend(train_task(trainer, state, toy.make_stream(), 0, seed=0))
    assert {type(step) for step in steps} == {StepDone}
    assert len(steps) < 20


def test_a_seed_gives_the_same_bits_and_another_does_not(fitted, mesh):
    first, again, other = (
        fitted("l2p"),
        *(toy.run(toy.METHODS["l2p"], mesh, seed=n) for n in (0, 1)),
    )
    assert first.losses == again.losses
    assert toy.same_bits(first.states, again.states)
    assert first.losses != other.losses


def labelled(label):
    """A batch that has labels, and nothing else that counts."""
    size, images = len(label), jnp.zeros((len(label), 1, 1, 3))
    return Batch(
        images=images,
        label=label,
        weight=jnp.ones(size),
        query=jnp.zeros((size, 0)),
        raw=images.astype(jnp.uint8),
        is_new=jnp.ones(size, bool),
    )


@given(
    st.lists(st.booleans(), min_size=7, max_size=7).filter(any),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
def test_classes_of_other_tasks_get_no_gradient(allowed, picks):
    classes = np.flatnonzero(allowed)
    label = jnp.asarray(classes[np.asarray(picks) % len(classes)], jnp.int32)
    batch = labelled(label)
    logits = jr.normal(jr.key(0), (4, 7))
    loss, grad = jax.value_and_grad(cross_entropy)(logits, batch, jnp.asarray(allowed))
    own = np.exp(np.asarray(logits)) * allowed
    chance = own[np.arange(4), np.asarray(label)] / own.sum(1)
    np.testing.assert_allclose(loss, -np.log(chance).mean(), rtol=1e-4, atol=1e-6)
    grad = np.asarray(grad)
    assert not grad[:, ~np.asarray(allowed)].any()
    assert len(classes) == 1 or grad[:, classes].any()


@given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.booleans()), min_size=5, max_size=5))
def test_a_weighted_mean_ignores_padding_even_if_it_is_infinite(pairs):
    values, real = (np.asarray(x) for x in zip(*pairs, strict=True))
    with_infinity = jnp.asarray(np.where(real, values, np.inf), jnp.float32)
    mean = weighted_mean(with_infinity, jnp.asarray(real, jnp.float32))
    np.testing.assert_allclose(mean, values[real].mean() if real.any() else 0, atol=1e-5)


def test_batches_and_meshes_that_do_not_fit_are_user_errors():
    with pytest.raises(UserError, match="mesh of 9 devices was asked for, but there are 8"):
        make_mesh(9)
    recipe = replace(toy.RECIPE, schedule=Schedule(1, 12))
    given = (toy.Pixels(), toy.make_vit(), toy.make_stream())
    with pytest.raises(UserError, match="batch size 12 is not divisible by the 8 devices"):
        Trainer.create(*given, recipe, mesh=make_mesh(8), key=jr.key(0))
