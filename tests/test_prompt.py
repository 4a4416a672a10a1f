"""Prompts: which are chosen, and what is made of them."""

from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from promptax import UserError, nn

POOL, TOP_K, DIM, BATCH = 5, 2, 3, 8


def make_pool(**options):
    shape = {"size": POOL, "length": 4, "top_k": TOP_K, "layers": (0, 2), "key": jr.key(0)}
    return nn.PromptPool.tokens(DIM, **{**shape, **options})


def make_prefixes(**options):
    shape = {"size": POOL, "length": 4, "top_k": TOP_K, "layers": (0, 2), "key": jr.key(0)}
    return nn.PromptPool.prefixes(2, 3, **{**shape, **options})


def vectors(count):
    rows = st.lists(st.floats(-3, 3, width=32), min_size=DIM, max_size=DIM)
    return st.lists(rows, min_size=count, max_size=count).map(lambda x: np.asarray(x, np.float32))


def chosen_ids():
    """For each example, `TOP_K` different ids."""
    pairs = st.permutations(range(POOL)).map(lambda order: order[:TOP_K])
    return st.lists(pairs, min_size=BATCH, max_size=BATCH).map(lambda x: np.asarray(x, np.int32))


def cosines(query, keys):
    unit = lambda x: x / np.sqrt(np.maximum((x**2).sum(-1, keepdims=True), 1e-12))
    return unit(np.asarray(query)) @ unit(np.asarray(keys)).T


@given(vectors(BATCH), vectors(POOL))
def test_an_example_is_given_the_prompts_with_the_nearest_keys(query, keys):
    pool = eqx.tree_at(lambda pool: pool.key, make_pool(), jnp.asarray(keys))
    chosen = pool.select(jnp.asarray(query))
    cosine = cosines(query, keys)
    nearest = -np.sort(-cosine, axis=1)[:, :TOP_K]
    np.testing.assert_allclose(chosen.similarity, nearest, atol=1e-5)
    own = np.take_along_axis(cosine, np.asarray(chosen.index), 1)
    np.testing.assert_allclose(chosen.similarity, own, atol=1e-5)
    assert all(len(set(row)) == TOP_K for row in chosen.index.tolist())


@given(chosen_ids(), st.lists(st.booleans(), min_size=8, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_the_vote_gives_each_group_its_most_frequent_ids(index, real, group):
    """Ties go to the smaller id; an example of weight 0 has no say."""
    won = nn.Vote(jnp.asarray(real, jnp.float32), group)(jnp.asarray(index), POOL)
    for start in range(0, BATCH, group):
        rows = range(start, start + group)
        ballots = Counter(i for row in rows if real[row] for i in index[row].tolist())
        wanted = sorted(range(POOL), key=lambda i: (-ballots[i], i))[:TOP_K]
        assert won[start : start + group].tolist() == [wanted] * group


@given(chosen_ids())
def test_a_vote_of_one_changes_no_set(index):
    won = nn.Vote(jnp.ones(BATCH), 1)(jnp.asarray(index), POOL)
    assert np.array_equal(won, np.sort(index))


@given(chosen_ids(), chosen_ids())
def test_a_group_has_no_say_in_another(index, other):
    vote = nn.Vote(jnp.ones(BATCH), 4)
    mixed = np.concatenate([index[:4], other[4:]])
    first, second = vote(jnp.asarray(index), POOL), vote(jnp.asarray(mixed), POOL)
    assert np.array_equal(first[:4], second[:4])


@pytest.mark.parametrize("vote", [None, nn.Vote(jnp.ones(BATCH), 4)])
def test_a_task_has_its_own_prompts_while_its_slot_is_in_the_pool(vote):
    pool, query = make_pool(), jr.normal(jr.key(1), (BATCH, DIM))
    select = eqx.filter_jit(lambda task: pool.select(query, vote=vote, task=task))
    free = pool.select(query, vote=vote)
    for task, slot in ((0, [0, 1]), (1, [2, 3])):
        chosen = select(jnp.int32(task))
        assert chosen.index.tolist() == [slot] * BATCH
        np.testing.assert_allclose(chosen.similarity, cosines(query, pool.key)[:, slot], atol=1e-6)
    for task in (2, 9):  # slot [4, 6) is half outside
        assert np.array_equal(select(jnp.int32(task)).index, free.index)


@pytest.mark.parametrize("make", [make_pool, make_prefixes])
def test_transfer_copies_the_slot_of_the_task_before_if_both_are_in_the_pool(make):
    pool = make()
    axis = 2 if pool.is_prefix else 1
    transfer = eqx.filter_jit(lambda pool, task, **what: pool.transfer(task, **what))
    slots = lambda pool: np.moveaxis(np.asarray(pool.prompt), axis, 0)

    moved = transfer(pool, jnp.int32(1), keys=True)
    assert np.array_equal(slots(moved)[2:4], slots(pool)[0:2])
    others = np.asarray([0, 1, 4])
    assert np.array_equal(slots(moved)[others], slots(pool)[others])
    assert np.array_equal(moved.key[2:4], pool.key[0:2])
    assert np.array_equal(moved.key[others], pool.key[others])

    prompts_only, keys_only = (
        transfer(pool, jnp.int32(1), prompts=keep, keys=not keep) for keep in (True, False)
    )
    assert np.array_equal(prompts_only.key, pool.key)
    assert np.array_equal(prompts_only.prompt, moved.prompt)
    assert np.array_equal(keys_only.prompt, pool.prompt)
    assert np.array_equal(keys_only.key, moved.key)
    for outside in (0, 2, 7):
        assert toy.same_bits(transfer(pool, jnp.int32(outside), keys=True), pool)


def test_without_learned_keys_the_key_of_a_prompt_is_its_mean():
    pool, query = make_pool(learned_keys=False), jr.normal(jr.key(1), (BATCH, DIM))
    chosen = pool.select(query)
    cosine = cosines(query, np.asarray(pool.prompt).mean((0, 2)))
    np.testing.assert_allclose(chosen.similarity, -np.sort(-cosine)[:, :TOP_K], atol=1e-5)
    assert pool.transfer(jnp.int32(1), keys=True).key is None


def test_chosen_prompts_follow_one_another_in_the_order_chosen():
    index = jnp.asarray([[3, 1], [0, 4]], jnp.int32)
    tokens, prefixes = make_pool(), make_prefixes()
    for n, layer in enumerate((0, 2)):
        for example, (first, second) in enumerate(index.tolist()):
            wanted = np.concatenate([tokens.prompt[n, first], tokens.prompt[n, second]])
            assert np.array_equal(tokens.gather(index)[layer][example], wanted)
            wanted = np.concatenate([prefixes.prompt[n, :, i] for i in (first, second)], axis=1)
            assert np.array_equal(prefixes.gather(index)[layer][example], wanted)


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_an_example_never_sees_the_prompts_of_another(name):
    """Prefixes that are reshaped wrongly mix examples, as in a widely copied port."""
    model: Any = toy.METHODS[name].init(toy.make_vit(), toy.make_stream(), key=jr.key(0))[0]
    parts = lambda model: (model.pool.prompt, model.head.kernel)
    strong = [jr.normal(jr.key(n), part.shape) for n, part in enumerate(parts(model))]
    model = eqx.tree_at(parts, model, strong)
    images = jr.uniform(jr.key(2), (4, 16, 16, 3))
    run = eqx.filter_jit(lambda query: model(images, query))
    query = jr.normal(jr.key(3), (4, 32))
    before, after = run(query), run(query.at[1].multiply(-1))
    assert before.selection.index[1].tolist() != after.selection.index[1].tolist()
    assert not np.array_equal(before.logits[1], after.logits[1])
    others = np.asarray([0, 2, 3])
    assert np.array_equal(before.logits[others], after.logits[others])


def test_prompts_and_keys_start_uniform_and_the_head_at_zero():
    for name in ("l2p", "dualprompt"):
        model: Any = toy.METHODS[name].init(toy.make_vit(), toy.make_stream(), key=jr.key(0))[0]
        for leaf in jax.tree.leaves((model.pool, model.shared)):
            assert 0 <= leaf.min() < 0.002
            assert 0.008 < leaf.max() < 0.01
        assert not model.head.kernel.any()


def prompted(pool, **options):
    return nn.PromptedViT(toy.make_vit(), nn.Linear(32, 7), pool, **options)


def token_pool(**options):
    shape = {"size": 5, "length": 2, "top_k": 2, "key": jr.key(0)}
    return nn.PromptPool.tokens(32, **{**shape, **options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_pool(top_k=6), "top-k 6 does not fit a pool of 5 prompts: choose 1 <= top-k"),
        (lambda: make_pool(top_k=0), "top-k 0 does not fit a pool of 5 prompts"),
        (lambda: make_pool(size=0), "0 prompts of length 4: expected at least 1 of each"),
        (lambda: make_prefixes(length=0), "5 prompts of length 0: expected at least 1 of each"),
        (lambda: make_prefixes(layers=(1, 1)), r"blocks \(1, 1\) for prompts name one twice"),
        (
            lambda: nn.PromptPool(make_pool().prompt, None, (0,), 2),
            r"2 prompt slices for blocks \(0,\)",
        ),
        (
            lambda: nn.PromptPool(make_prefixes().prompt, None, (0, 2), 2),
            "prefixes need learned keys",
        ),
        (
            lambda: nn.Vote(jnp.ones(8), 3)(jnp.zeros((8, 2), jnp.int32), 5),
            "a vote group of 3 does not divide a batch of 8",
        ),
        (
            lambda: prompted(token_pool(layers=(0, 3)), readout="prompt"),
            r"prompts in blocks \(0, 3\), but this ViT has blocks 0 to 2",
        ),
        (
            lambda: prompted(None, readout="token+prompt"),
            r"the read-out 'token\+prompt' needs prompt tokens, but there are none",
        ),
        (
            lambda: prompted(token_pool(layers=(1,)), position="after_cls"),
            "prompts after the class token can only enter at block 0",
        ),
        (
            lambda: prompted(make_pool()),
            r"prompts of shape \(2, 5, 4, 3\) do not fit a ViT of width 32 and 4 heads",
        ),
        (
            lambda: prompted(make_prefixes()),
            r"prompts of shape \(2, 2, 5, 4, 2, 3\) do not fit a ViT of width 32 and 4 heads",
        ),
    ],
)
def test_what_does_not_fit_is_a_user_error(make, words):
    with pytest.raises(UserError, match=words):
        make()
