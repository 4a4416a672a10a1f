"""Prompts: which are chosen, and what is made of them."""

from collections import Counter
from dataclasses import replace
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
from promptax.nn.rotary import Rotary

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


KINDS: dict[str, dict[str, Any]] = {
    "dinov2 registers": {"layer_scale": True, "registers": 2},
    "deit3": {"layer_scale": True, "positions": "patches"},
    "dinov3": {"layer_scale": True, "registers": 2, "positions": "rotary", "gated_mlp": True},
    "siglip": {"class_token": False, "positions": "patches", "pooling": "attention"},
    "mean": {"class_token": False, "positions": "patches", "pooling": "mean_after_norm"},
    "normalised heads": {"qk_norm": True, "qkv_bias": False},
}
FAST = ("dinov3", "siglip")
"""The kinds that differ most, in the fast suite."""


@pytest.mark.parametrize("kind", toy.slow_except(FAST[:1], KINDS))
def test_prompts_and_prefixes_reach_the_features_of_every_kind_of_vit(kind):
    vit = eqx.filter_jit(nn.ViT)(replace(toy.CONFIG, **KINDS[kind]), key=jr.key(0))
    images = jr.uniform(jr.key(1), (BATCH, 16, 16, 3))
    dim = vit.config.dim
    pools = {
        "tokens": nn.PromptPool.tokens(
            dim, size=4, length=3, top_k=2, layers=(0, 2), key=jr.key(2)
        ),
        "prefixes": nn.PromptPool.prefixes(
            4, dim // 4, size=4, length=3, top_k=1, layers=(0, 1), key=jr.key(3)
        ),
    }
    features = eqx.filter_jit(lambda model: model(images, model.query(images)).features)
    direction = jr.normal(jr.key(5), (dim,))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(prompt, model):
        model = eqx.tree_at(lambda model: model.pool.prompt, model, prompt)
        return (features(model) @ direction).sum()

    for pool in pools.values():
        pool = eqx.tree_at(lambda pool: pool.prompt, pool, jr.normal(jr.key(4), pool.prompt.shape))
        for readout in ("token", "gap") if pool.is_prefix else ("token", "prompt", "gap"):
            model = nn.PromptedViT(vit, nn.Linear(dim, 2), pool, readout=readout)
            grads = gradient(pool.prompt, model)
            assert jnp.isfinite(grads).all()
            assert jnp.abs(grads).max() > 1e-4
    # Without prompts, the read-out is the feature vector of the ViT itself.
    plain = nn.PromptedViT(vit, nn.Linear(dim, 2))
    np.testing.assert_allclose(features(plain), eqx.filter_jit(vit)(images), atol=1e-5)
    if not vit.config.class_token:
        refused: list[dict[str, Any]] = [{"readout": "token+prompt"}, {"position": "after_cls"}]
        for wrong in refused:
            token_pool = nn.PromptPool.tokens(dim, size=4, length=3, top_k=1, key=jr.key(2))
            with pytest.raises(UserError, match=r"needs? a class token, and this ViT has none"):
                nn.PromptedViT(vit, nn.Linear(dim, 2), token_pool, **wrong)


@pytest.mark.parametrize("kind", toy.slow_except(FAST, KINDS))
@pytest.mark.parametrize("execution", ["scan", "unroll"])
def test_every_kind_of_vit_is_the_same_however_it_is_executed(kind, execution):
    config = replace(toy.CONFIG, depth=4, **KINDS[kind])
    vit = eqx.filter_jit(nn.ViT)(config, key=jr.key(0), execution=nn.Execution(blocks=execution))
    images = jr.uniform(jr.key(1), (2, 16, 16, 3))
    x = vit.tokens(vit.patches(images))
    inserts = {2: jr.normal(jr.key(2), (2, 3, config.dim))}
    prefixes = {1: jr.normal(jr.key(3), (2, 2, 5, 4, config.dim // 4))}
    ours = eqx.filter_jit(vit.encode)(x, inserts=inserts, prefixes=prefixes)
    for number in range(config.depth):
        if number in inserts:
            x = jnp.concatenate([inserts[number], x], axis=1)
        rotary = None
        if config.positions == "rotary":
            rotary = Rotary.of(config, x.shape[1], rows=x.shape[1])
        block = jax.tree.map(lambda leaf, number=number: leaf[number], vit.blocks)
        x = eqx.filter_jit(block)(x, prefixes.get(number), rotary=rotary)
    np.testing.assert_allclose(ours, vit.norm(x), rtol=1e-4, atol=1e-5)


def test_rotary_positions_are_told_by_distance_and_not_by_place():
    """Queries and keys that are equal before have scores that depend on the distance alone."""
    config = replace(toy.CONFIG, image=32, positions="rotary")
    rotary = Rotary.of(config, tokens=17, rows=20)
    ones = jnp.ones((1, 1, 20, config.dim // config.heads))
    turned = rotary(ones)[0, 0]
    assert np.array_equal(turned[0], ones[0, 0, 0])  # the class token
    assert np.array_equal(turned[17:], ones[0, 0, 17:])  # padding
    scores = turned[1:17] @ turned[1:17].T
    grid = scores.reshape(4, 4, 4, 4)
    np.testing.assert_allclose(grid[0, 0, 1, 2], grid[2, 1, 3, 3], rtol=1e-5)
    np.testing.assert_allclose(jnp.diagonal(scores), config.dim // config.heads, rtol=1e-5)
    assert jnp.abs(grid[0, 0, 1, 2] - grid[0, 0, 3, 3]) > 1e-3
