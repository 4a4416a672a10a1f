"""Mixup and CutMix: who meets whom, how much of each there is, and what the loss makes of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from promptax.core.settings import Augment, Images
from promptax.core.sharding import make_mesh, replicate, split
from promptax.core.types import Batch, RawBatch
from promptax.data.augment import mix
from promptax.data.augment.mix import partners
from promptax.methods.base import no_query
from promptax.methods.components.losses import cross_entropy
from promptax.training.trainer import Trainer

COUNT, SIDE = 500, 12
jit_mix = jax.jit(mix, static_argnums=1)
jit_partners = jax.jit(partners)


def batch_of(images, label, weight, **mixed):
    """A batch of prepared images of which nothing else matters."""
    raw = jnp.zeros(images.shape, jnp.uint8)
    known = {"query": no_query(images), "raw": raw, "is_new": jnp.ones(len(images), bool)}
    return Batch(images, label, jnp.asarray(weight, jnp.float32), **known, **mixed)


def make_batch(real=COUNT, seed=0):
    """Each example has a label of its own, by which its partner is known."""
    images = jr.uniform(jr.key(seed), (COUNT, SIDE, SIDE, 3))
    return batch_of(images, jnp.arange(COUNT, dtype=jnp.int32), jnp.arange(COUNT) < real)


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 2**31))
def test_partners_are_a_circle_of_the_real_examples(real, seed):
    partner = np.asarray(jit_partners(jr.key(seed), jnp.asarray(real, jnp.float32)))
    np.testing.assert_array_equal(np.sort(partner), np.arange(8))
    members = np.flatnonzero(real)
    np.testing.assert_array_equal(partner[~np.asarray(real)], np.flatnonzero(~np.asarray(real)))
    met, at = [], members[:1]
    while len(at) and at[0] not in met:
        met.append(int(at[0]))
        at = partner[at]
    assert sorted(met) == members.tolist()


@pytest.mark.parametrize("alpha", toy.slow_except([0.3], [0.3, 1.0]))
def test_mixup_is_a_sum_by_shares_from_a_beta_distribution(alpha):
    batch = make_batch()
    mixed = jit_mix(batch, Augment(mixup=alpha), jr.key(0))
    share = np.asarray(mixed.share)[:, None, None, None]
    wanted = share * batch.images + (1 - share) * batch.images[mixed.mixed_label]
    np.testing.assert_allclose(mixed.images, wanted, atol=1e-6)
    assert (mixed.mixed_label != mixed.label).all()
    np.testing.assert_array_equal(mixed.label, batch.label)
    assert stats.kstest(mixed.share, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def published_share(random):
    """What CutMix keeps of an image, by the authors' `rand_bbox`."""
    side = np.sqrt(1 - random.beta(1, 1))
    cut, centre = int(SIDE * side), random.integers(SIDE, size=2)
    low, high = (np.clip(centre + sign * (cut // 2), 0, SIDE) for sign in (-1, 1))
    return 1 - np.prod(high - low) / SIDE**2


def test_cutmix_pastes_a_rectangle_and_shares_by_its_area():
    batch = make_batch()
    mixed = jit_mix(batch, Augment(cutmix=1.0), jr.key(0))
    pasted = np.asarray((mixed.images == batch.images[mixed.mixed_label]).all(-1))
    np.testing.assert_array_equal(mixed.images[~pasted], batch.images[~pasted])
    area = pasted.any(1).sum(1) * pasted.any(2).sum(1)
    np.testing.assert_array_equal(pasted.sum((1, 2)), area)
    np.testing.assert_allclose(mixed.share, 1 - area / SIDE**2, atol=1e-6)
    random = np.random.default_rng(0)
    wanted = [published_share(random) for _ in range(5000)]
    ours, wanted = (np.round(np.asarray(x, np.float32), 4) for x in (mixed.share, wanted))
    assert np.asarray(stats.ks_2samp(ours, wanted))[1] > 1e-3


def test_with_both_on_half_of_the_images_get_either_and_some_none():
    batch = make_batch()
    augment = Augment(mixup=1.0, cutmix=1.0, mix_probability=0.8)
    mixed = jit_mix(batch, augment, jr.key(0))
    own = np.asarray((mixed.images == batch.images).all(-1))
    untouched, cut = own.all((1, 2)), own.any((1, 2))
    np.testing.assert_array_equal(np.asarray(mixed.share)[untouched], 1)
    assert abs((~cut).mean() - 0.4) < 0.07
    assert 0.2 - 0.06 < untouched.mean() < 0.2 + 0.12  # a rectangle may also be empty


def test_padding_is_mixed_with_nothing_and_nothing_with_it():
    batch = make_batch(real=300)
    poisoned = replace(batch, images=batch.images.at[300:].set(1e9))
    mixed = jit_mix(poisoned, Augment(mixup=1.0, cutmix=1.0), jr.key(0))
    assert (mixed.mixed_label[:300] < 300).all()
    assert bool((jnp.abs(mixed.images[:300]) <= 1).all())
    np.testing.assert_array_equal(mixed.images[300:], poisoned.images[300:])
    np.testing.assert_array_equal(mixed.share[300:], 1)
    alone = make_batch(real=1)
    unmixed = jit_mix(alone, Augment(mixup=1.0), jr.key(0))
    np.testing.assert_array_equal(unmixed.images, alone.images)
    np.testing.assert_array_equal(unmixed.mixed_label, unmixed.label)


@pytest.mark.parametrize("off", [Augment(), Augment(mixup=1.0, mix_probability=0.0)])
def test_with_mixing_off_the_batch_stays_as_it_is(off):
    batch = make_batch()
    same = mix(batch, off, jr.key(0))
    assert same is batch
    assert same.main_label is batch.label


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_the_loss_is_that_of_the_mixed_targets(shares):
    logits, classes = jr.normal(jr.key(0), (4, 7)), jnp.arange(7) < 5
    label, other = jnp.asarray([0, 1, 2, 3]), jnp.asarray([4, 1, 0, 2])
    share, weight = np.asarray(shares, np.float32), np.asarray([1, 1, 0, 1.0])
    images = jnp.zeros((4, 1, 1, 3))
    batch = batch_of(images, label, weight, mixed_label=other, share=jnp.asarray(share))
    target = np.zeros((4, 7))
    target[np.arange(4), label] += share
    target[np.arange(4), other] += 1 - share
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
    loss = -(target[:, :5] * special.log_softmax(np.asarray(logits)[:, :5], 1)).sum(1)
    wanted = (loss * weight).sum() / weight.sum()
    np.testing.assert_allclose(cross_entropy(logits, batch, classes), wanted, rtol=1e-5)
    np.testing.assert_array_equal(batch.main_label, np.where(share < 0.5, other, label))


AUGMENT = Augment(1, 9.0, 0.4, erase=0.5, mixup=1.0, cutmix=1.0, mix_probability=0.9)
RECIPE = replace(toy.RECIPE, images=Images(16, None, normalisation="imagenet", augment=AUGMENT))


def create(devices):
    mesh = make_mesh(devices)
    vit, stream = toy.make_vit(), toy.make_stream()
    return Trainer.create(toy.Pixels(), vit, stream, RECIPE, mesh=mesh, key=jr.key(0))


@pytest.mark.slow
def test_eight_devices_augment_and_mix_as_one():
    def metrics(devices):
        trainer, state = create(devices)
        task = replicate(toy.make_task(), trainer.mesh)
        for n in range(3):
            batch = toy.make_batch(np.random.default_rng(n))
            batch = jax.device_put(batch, split(trainer.mesh))
            state, step = trainer.step(state, batch, task)
            yield step.loss, step.accuracy, step.grad_norm

    one, eight = (np.asarray(list(metrics(devices)), float) for devices in (1, 8))
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_stands_in_the_padding_changes_no_bit_of_a_mixed_step():
    trainer, start = create(1)
    padded, task = jnp.arange(16) >= 13, replicate(toy.make_task(), trainer.mesh)

    def step(seed, classes):
        batch = toy.make_batch(np.random.default_rng(0))
        other = toy.make_batch(np.random.default_rng(seed), classes=classes)
        image = jnp.where(padded[:, None, None, None], other.image, batch.image)
        label = jnp.where(padded, other.label, batch.label)
        batch = RawBatch(image, label, (~padded).astype(jnp.float32))
        batch = jax.device_put(batch, split(trainer.mesh))
        return trainer.step(toy.copy(start), batch, task)

    first, second = step(1, (0, 1)), step(2, (5, 6))
    assert np.isfinite(first[1].loss)
    assert np.isfinite(first[1].grad_norm)
    assert 0 <= first[1].accuracy <= 1
    assert toy.same_bits(first, second)
