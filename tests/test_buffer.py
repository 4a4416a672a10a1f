"""The replay buffer, against a loop over examples, and by what it keeps in the long run."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from promptax import UserError
from promptax.core.settings import Replay
from promptax.core.types import RawBatch
from promptax.methods.components.buffer import Buffer, extend

KINDS = ("reservoir", "ring", "balanced")


def empty(kind, capacity=9, classes=3, logits=False):
    groups = 1 if kind == "reservoir" else classes
    return Buffer(
        image=jnp.zeros((capacity, 1, 1, 1), jnp.uint8),
        label=jnp.zeros(capacity, jnp.int32),
        logits=jnp.zeros((capacity, classes)) if logits else None,
        offered=jnp.zeros(groups, jnp.int32),
        kind=kind,
    )


def examples(labels, first=0, weight=None):
    """Each image is one pixel with the number of its example."""
    number = jnp.arange(first, first + len(labels), dtype=jnp.uint8)
    weight = jnp.ones(len(labels)) if weight is None else jnp.asarray(weight, jnp.float32)
    return RawBatch(number[:, None, None, None], jnp.asarray(labels, jnp.int32), weight)


def naive(kind, batches, keys, capacity=9, classes=3):
    """The slots after all batches: example numbers or -1, one example at a time."""
    groups = 1 if kind == "reservoir" else classes
    quota = capacity // groups
    slots, offered, first = [-1] * capacity, [0] * groups, 0
    for (labels, weight), key in zip(batches, keys, strict=True):
        numbers = []  # of each example in its group; padding is given what comes next
        ahead = list(offered)
        for label, real in zip(labels, weight, strict=True):
            group = label if groups > 1 else 0
            numbers.append(ahead[group])
            ahead[group] += int(real)
        draws = jr.randint(key, (len(labels),), 0, jnp.asarray(numbers) + 1)
        for i, (label, real) in enumerate(zip(labels, weight, strict=True)):
            if not real:
                continue
            group = label if groups > 1 else 0
            n, offered[group] = offered[group], offered[group] + 1
            place = n % quota if kind == "ring" else n if n < quota else int(draws[i])
            if place < quota:
                slots[group * quota + place] = first + i
        first += len(labels)
    return slots


BATCHES = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=5, max_size=5),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", toy.slow_except(["balanced"], KINDS))
@settings(max_examples=8)
@given(batches=BATCHES, seed=st.integers(0, 99))
def test_batches_go_in_as_their_examples_would_one_by_one(kind, batches, seed):
    """Padding, several examples for one slot, and capacities that are not full included."""
    batches = [tuple(zip(*batch, strict=True)) for batch in batches]
    keys = list(jr.split(jr.key(seed), len(batches)))
    buffer, first = empty(kind, logits=True), 0
    for (labels, weight), key in zip(batches, keys, strict=True):
        batch = examples(labels, first, weight)
        logits = jnp.asarray(batch.image[:, 0, 0], jnp.float32) + jnp.arange(3) / 4
        buffer, first = _add(buffer, batch, logits, key), first + len(labels)
    wanted = np.array(naive(kind, batches, keys))
    assert np.array_equal(buffer.filled, wanted >= 0)
    kept = wanted[wanted >= 0]
    assert np.array_equal(buffer.image[:, 0, 0, 0][wanted >= 0], kept)
    everything = np.array([label for labels, _ in batches for label in labels])
    assert np.array_equal(buffer.label[wanted >= 0], everything[kept])
    assert buffer.logits is not None
    assert np.array_equal(buffer.logits[wanted >= 0], kept[:, None] + np.arange(3) / 4)


@eqx.filter_jit
def _add(buffer, batch, logits, key):
    return buffer.add(batch.image, batch.label, batch.weight, logits, key=key)


@eqx.filter_jit
def _sample(buffer, size, key):
    return buffer.sample(size, key=key)


def test_a_reservoir_keeps_each_example_with_the_same_probability():
    runs, offered, capacity = 4000, 24, 6
    numbers = jnp.arange(offered).reshape(4, 6)

    @jax.jit
    @jax.vmap
    def keep(key):
        buffer = empty("reservoir", capacity)
        for row, one in zip(numbers, jr.split(key, 4), strict=True):
            batch = examples(jnp.zeros(6, jnp.int32), first=0)
            image = row.astype(jnp.uint8)[:, None, None, None]
            offered = (image, batch.label, batch.weight, jnp.zeros((6, 3)))
            buffer = buffer.add(*offered, key=one)
        return buffer.image[:, 0, 0, 0]

    counts = np.bincount(np.asarray(keep(jr.split(jr.key(0), runs))).ravel(), minlength=offered)
    share = capacity / offered
    deviation = np.sqrt(runs * share * (1 - share))
    assert np.abs(counts - runs * share).max() < 4 * deviation


def test_a_sample_has_different_examples_and_no_empty_slot():
    buffer = _add(empty("balanced", 12), examples([0, 0, 2, 2, 2]), jnp.zeros((5, 3)), jr.key(0))
    seen = set()
    for seed in range(40):
        batch = _sample(buffer, 7, jr.key(seed))
        real = np.asarray(batch.image[:, 0, 0, 0])[np.asarray(batch.weight) > 0]
        assert sorted(real) == [0, 1, 2, 3, 4]
        two = _sample(buffer, 2, jr.key(seed))
        assert np.array_equal(two.weight, [1, 1])
        assert np.array_equal(two.label, np.array([0, 0, 2, 2, 2])[two.image[:, 0, 0, 0]])
        seen.add(tuple(np.sort(two.image[:, 0, 0, 0])))
    assert len(seen) == 10
    assert not empty("ring").sample(4, key=jr.key(0)).weight.any()


def test_a_batch_is_extended_behind_its_own_examples():
    plain, other = examples([0, 1]), examples([2], first=7)
    both = extend(plain, replace(other, stored_logits=jnp.ones((1, 3))))
    assert both.image[:, 0, 0, 0].tolist() == [0, 1, 7]
    assert both.label.tolist() == [0, 1, 2]
    assert both.stored_logits is not None
    assert both.stored_logits.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert extend(plain, other).stored_logits is None


@pytest.mark.parametrize(
    ("replay", "words"),
    [
        (Replay(134), "buffer of 134 images; expected 1 to 133"),
        (Replay(20, True), "buffer of 140 images; expected 1 to 133"),
        (Replay(31), "32 images cannot be drawn at once from a buffer of 31"),
        (Replay(6, buffer_kind="ring", replay_batch=2), "no slot for each of 7 classes"),
    ],
)
def test_buffers_that_do_not_fit_the_stream_are_user_errors(replay, words):
    with pytest.raises(UserError, match=words):
        Buffer.empty(replay, toy.make_stream())


@pytest.mark.parametrize("changes", [{"buffer_size": -1}, {"replay_batch": 0}])
def test_settings_out_of_range_are_user_errors(changes):
    with pytest.raises(UserError, match="expected at least"):
        Replay(**changes)


@pytest.mark.parametrize("per_class", [True, False])
def test_a_buffer_has_the_size_that_was_asked_for(per_class):
    buffer = Buffer.empty(Replay(15, per_class, replay_batch=4), toy.make_stream(), logits=True)
    size = 15 * 7 if per_class else 15
    assert buffer.image.shape == (size, 16, 16, 3)
    assert buffer.logits is not None
    assert buffer.logits.shape == (size, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_of_a_pass_have_each_example_once(kind):
    """In an order of its key, with the rest of the last page of weight 0."""
    labels, size = [0, 2, 2, 0, 2, 0, 0, 2], 3
    buffer = _add(empty(kind, 12), examples(labels), jnp.zeros((8, 3)), jr.key(0))
    kept = np.asarray(buffer.image[:, 0, 0, 0])[np.asarray(buffer.filled)]
    assert buffer.pages(size) == -(-len(kept) // size)
    orders = []
    for seed in range(2):
        pages = [_page(buffer, n, size, jr.key(seed)) for n in range(int(buffer.pages(size)))]
        real = [np.asarray(page.weight) > 0 for page in pages]
        images = [page.image[:, 0, 0, 0][mask] for page, mask in zip(pages, real, strict=True)]
        orders.append(np.concatenate(images))
        assert sorted(orders[-1]) == sorted(kept)
        page = pages[0]
        assert np.array_equal(page.label, np.array(labels)[page.image[:, 0, 0, 0]])
    assert not np.array_equal(*orders)
    assert not _page(buffer, 99, size, jr.key(0)).weight.any()
    assert empty(kind).pages(size) == 0


@eqx.filter_jit
def _page(buffer, number, size, key):
    return buffer.page(jnp.int32(number), size, key=key)
