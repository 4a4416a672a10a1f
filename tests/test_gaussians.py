"""Streamed Gaussian statistics, against NumPy on all features at once."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptax.methods.components.gaussians import Gaussians

CLASSES, DIM = 4, 3


@eqx.filter_jit
def add(gaussians, *batch):
    return gaussians.add(*batch)


def streamed(feature, label, weight, size, *, diagonal=False):
    """In batches of a size, the last one padded with what must not count."""
    gaussians = Gaussians.empty(CLASSES, feature.shape[1], diagonal=diagonal)
    padding = -len(label) % size
    feature = np.pad(feature, ((0, padding), (0, 0)), constant_values=np.nan)
    label, weight = np.pad(label, (0, padding)), np.pad(weight, (0, padding))
    for start in range(0, len(label), size):
        part = slice(start, start + size)
        batch = feature[part].astype(np.float32), label[part].astype(np.int32)
        batch = (*batch, weight[part].astype(np.float32))
        gaussians = add(gaussians, *(jnp.asarray(x) for x in batch))
    return gaussians


def by_class(feature, label, weight):
    return [feature[(label == c) & (weight > 0)] for c in range(CLASSES)]


@settings(max_examples=20)
@given(
    rows=st.lists(st.tuples(st.integers(0, CLASSES - 1), st.booleans()), min_size=1, max_size=40),
    size=st.sampled_from([1, 7, 16]),
    seed=st.integers(0, 99),
)
def test_statistics_are_those_of_numpy_for_any_cut_into_batches(rows, size, seed):
    """Classes without a feature, or with one, included."""
    label, weight = (np.array(column) for column in zip(*rows, strict=True))
    feature = np.random.default_rng(seed).normal(size=(len(rows), DIM))
    full, diagonal = (streamed(feature, label, weight, size, diagonal=d) for d in (False, True))
    for c, rows_of in enumerate(by_class(feature, label, weight)):
        assert full.count[c] == diagonal.count[c] == len(rows_of)
        assert full.seen[c] == (len(rows_of) > 0)
        mean = rows_of.mean(0) if len(rows_of) else np.zeros(DIM)
        wanted = np.cov(rows_of.T) if len(rows_of) > 1 else np.zeros((DIM, DIM))
        np.testing.assert_allclose(full.mean[c], mean, atol=1e-5)
        np.testing.assert_allclose(diagonal.mean[c], mean, atol=1e-5)
        np.testing.assert_allclose(full.covariance[c], wanted, atol=1e-5)
        np.testing.assert_allclose(diagonal.covariance[c], np.diag(wanted), atol=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_mean_that_is_far_from_zero_costs_no_digits(diagonal):
    """Sums of squares would be 1e8 here, of which float32 keeps units of 8: all of a variance."""
    random = np.random.default_rng(0)
    feature = (1e3 + random.normal(size=(4096, DIM)) * [1, 0.1, 3]).astype(np.float32)
    label = random.integers(0, CLASSES, 4096)
    gaussians = streamed(feature, label, np.ones(4096), 64, diagonal=diagonal)
    for c, rows in enumerate(by_class(feature.astype(float), label, np.ones(4096))):
        wanted = np.cov(rows.T)
        np.testing.assert_allclose(gaussians.mean[c], rows.mean(0), rtol=1e-6)
        wanted = np.diag(wanted) if diagonal else wanted
        np.testing.assert_allclose(gaussians.covariance[c], wanted, rtol=3e-3, atol=3e-4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_what_is_drawn_has_the_statistics_of_its_class(diagonal):
    random, each = np.random.default_rng(0), 20_000
    mix = random.normal(size=(CLASSES, DIM, DIM))
    label = np.repeat([0, 1, 3], 400)
    feature = np.einsum("bij,bj->bi", mix[label], random.normal(size=(1200, DIM))) + label[:, None]
    gaussians = streamed(feature, label, np.ones(1200), 64, diagonal=diagonal)
    draw = eqx.filter_jit(lambda g, key: g.factors(0.0).sample(each, key=key))
    draws = draw(gaussians, jr.key(0))
    assert np.array_equal(draws.label, np.repeat(np.arange(CLASSES), each))
    assert np.array_equal(draws.weight, draws.label != 2)
    for c in (0, 1, 3):
        rows = np.asarray(draws.feature)[c * each : (c + 1) * each]
        covariance = np.asarray(gaussians.covariance[c])
        covariance = np.diag(covariance) if diagonal else covariance
        scale = np.sqrt(np.diag(covariance))
        # Five standard errors of a mean and of a covariance.
        assert (np.abs(rows.mean(0) - gaussians.mean[c]) < 5 * scale / np.sqrt(each)).all()
        error = 5 * np.sqrt(2) * np.outer(scale, scale) / np.sqrt(each)
        assert (np.abs(np.cov(rows.T) - covariance) < error).all()
    assert not np.array_equal(draws.feature, draw(gaussians, jr.key(1)).feature)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_class_with_fewer_features_than_dimensions_can_be_drawn_from(scale):
    dim, few = 64, 5
    feature = scale * np.random.default_rng(0).normal(size=(few, dim))
    gaussians = streamed(feature, np.zeros(few, int), np.ones(few), 2)
    factors = jax.jit(Gaussians.factors)(gaussians)
    assert np.isfinite(factors.factor).all()
    product = factors.factor[0] @ factors.factor[0].T
    wanted = np.cov(feature.T) + 1e-4 * np.eye(dim)
    np.testing.assert_allclose(product, wanted, atol=1e-4 * scale**2 + 1e-7)


PARALLEL = """
import jax, jax.numpy as jnp
from promptax.methods.components.gaussians import Gaussians
x = jax.random.normal(jax.random.key(0), (100, 64, 64))
some = Gaussians(jnp.full(100, 2.0), jnp.zeros((100, 64)), x @ x.mT)
many = jax.jit(lambda g: [jax.tree.map(lambda x: n * x, g).factors().factor for n in range(1, 9)])
for _ in range(20):
    jax.block_until_ready(many(some))
"""


@pytest.mark.slow
def test_several_sets_of_factors_in_one_program_do_not_wait_for_one_another():
    """As jaxlib's Cholesky decompositions of batches do, for ever, on one device as on eight."""
    one = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", PARALLEL], env=one, timeout=120, check=True)
