"""Adapters, scales and shifts, and deep prompts, against the formulas of their authors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import UserError, nn
from promptax.nn.layers import LayerNorm, Linear
from promptax.nn.scale_shift import ScaleShift, ScaleShiftTuning
from promptax.nn.tuned import TunedViT


@pytest.fixture(scope="module")
def images():
    return jr.uniform(jr.key(7), (3, 16, 16, 3))


def tuned(kind, key=None, **options):
    """Tuned parameters, at random values if there is a key."""
    model = TunedViT.init(toy.make_vit(**options), kind, 4, key=jr.key(1))
    if key is None:
        return model
    leaves, structure = jax.tree.flatten(model.tuning)
    keys = jr.split(key, len(leaves))
    drawn = [
        leaf + 0.3 * jr.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)
    ]
    return eqx.tree_at(lambda model: model.tuning, model, jax.tree.unflatten(structure, drawn))


def blocks_of(vit):
    depth = vit.config.depth
    return [jax.tree.map(lambda leaf, n=n: leaf[n], vit.blocks) for n in range(depth)]


def test_new_adapters_change_nothing(images):
    model = tuned("adapter")
    assert np.array_equal(eqx.filter_jit(model)(images), eqx.filter_jit(model.vit)(images))


def test_an_adapter_stands_beside_the_mlp(images):
    model = tuned("adapter", jr.key(2))
    vit = model.vit
    tuning: Any = model.tuning
    down = tuning.down
    up = tuning.up

    @eqx.filter_jit
    def plain(images):
        x = vit.tokens(vit.patches(images))
        for number, block in enumerate(blocks_of(vit)):
            x = x + block.attention(block.attention_norm(x))
            narrow = jax.nn.relu(x @ down.kernel[number] + down.bias[number])
            beside = 0.1 * (narrow @ up.kernel[number] + up.bias[number])
            x = x + block.mlp(block.mlp_norm(x)) + beside
        return vit.norm(x)[:, 0]

    ours = eqx.filter_jit(model)(images)
    np.testing.assert_allclose(ours, plain(images), atol=1e-5)
    assert not np.allclose(ours, eqx.filter_jit(vit)(images), atol=1e-2)


def test_deep_prompts_stand_beside_the_tokens_in_one_block_each(images):
    """The authors put them behind the tokens, which makes no difference: they have no position."""
    model = tuned("vpt", jr.key(3))
    vit = model.vit
    tuning: Any = model.tuning

    @eqx.filter_jit
    def plain(images):
        x = vit.tokens(vit.patches(images))
        tokens = x.shape[1]
        for block, prompt in zip(blocks_of(vit), tuning.tokens, strict=True):
            repeated = jnp.broadcast_to(prompt, (len(x), *prompt.shape))
            x = block(jnp.concatenate([x, repeated], axis=1))[:, :tokens]
        return vit.norm(x)[:, 0]

    ours = eqx.filter_jit(model)(images)
    np.testing.assert_allclose(ours, plain(images), atol=1e-5)
    assert not np.allclose(ours, eqx.filter_jit(vit)(images), atol=1e-2)


def test_scales_and_shifts_act_on_the_output_of_a_layer():
    draw = lambda number, *shape: jr.normal(jr.key(number), shape)
    x = draw(0, 5, 6)
    behind = ScaleShift((4,), key=jr.key(1))
    linear = Linear(6, 4, key=jr.key(2))
    wanted = behind.scale * linear(x) + behind.shift
    np.testing.assert_allclose(behind.linear(linear)(x), wanted, atol=1e-5)
    behind = ScaleShift((6,), key=jr.key(3))
    norm = eqx.tree_at(lambda norm: norm.bias, LayerNorm(6), draw(4, 6))
    wanted = behind.scale * norm(x) + behind.shift
    np.testing.assert_allclose(behind.norm(norm)(x), wanted, atol=1e-5)


def test_every_layer_of_a_block_is_scaled_and_shifted(images):
    model = tuned("ssf", jr.key(4))
    vit = model.vit
    tuning: Any = model.tuning
    merged = tuning(vit)
    x = jr.normal(jr.key(5), (2, 5, 32))
    for number, (block, ours) in enumerate(zip(blocks_of(vit), blocks_of(merged), strict=True)):
        at = lambda part, n=number: (part.scale[n], part.shift[n])
        scale, shift = at(tuning.qkv)
        for part in range(3):
            wanted = scale[part] * block.attention.project(x, part) + shift[part]
            np.testing.assert_allclose(ours.attention.project(x, part), wanted, atol=1e-4)
        pairs = [
            (tuning.attention_norm, block.attention_norm, ours.attention_norm),
            (tuning.mlp_norm, block.mlp_norm, ours.mlp_norm),
            (tuning.hidden, block.mlp.hidden, ours.mlp.hidden),
        ]
        for part, before, after in pairs:
            scale, shift = at(part)
            np.testing.assert_allclose(after(x), scale * before(x) + shift, atol=1e-4)
    wanted = tuning.patch.scale * vit.patches(images) + tuning.patch.shift
    np.testing.assert_allclose(merged.patches(images), wanted, atol=1e-4)


def test_a_vit_without_a_bias_of_queries_gets_one_from_the_shifts():
    config = nn.ViTConfig(8, 32, 2, 4, 64, image=16, qkv_bias=False)
    vit = nn.ViT(config, key=jr.key(0))
    tuning = ScaleShiftTuning(vit, key=jr.key(1))
    bias = tuning(vit).blocks.attention.qkv_bias
    assert bias is not None
    assert np.array_equal(bias, tuning.qkv.shift)


@pytest.mark.parametrize(
    ("kind", "width", "words"),
    [
        ("adapter", 0, "bottleneck of the adapters is 0 wide; expected 1 to 32"),
        ("adapter", 33, "expected 1 to 32"),
        ("vpt", 0, "prompts of 0 tokens"),
    ],
)
def test_what_does_not_fit_a_vit_is_a_user_error(kind, width, words):
    with pytest.raises(UserError, match=words):
        TunedViT.init(toy.make_vit(), kind, width, key=jr.key(0))
