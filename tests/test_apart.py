"""Frozen blocks that are stored apart, where a step lays them out one after another."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import methods, nn
from promptax.nn.apart import Apart, put_together, take_apart
from promptax.training.steps import train_step
from promptax.training.trainer import Trainer

UNROLLED = nn.Execution(blocks="unroll")


def make_vit(*, execution=UNROLLED, **options: Any):
    config = nn.ViTConfig(patch=8, dim=32, depth=3, heads=4, mlp=64, image=16, **options)
    return nn.ViT(config, key=jr.key(0), execution=execution)


def is_apart(node):
    return isinstance(node, Apart)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False, "layer_scale": True},
        {"gated_mlp": True, "activation": "silu", "qk_norm": True},
    ],
)
def test_what_is_taken_apart_is_put_together_again(options):
    vit = make_vit(**options)
    model = {"backbone": vit, "head": jnp.ones(3)}
    stored = take_apart(model)
    of_blocks = jax.tree.leaves(stored["backbone"].blocks, is_leaf=is_apart)
    assert of_blocks
    assert all(map(is_apart, of_blocks))
    others = eqx.tree_at(lambda vit: vit.blocks, stored["backbone"], None)
    assert not any(map(is_apart, jax.tree.leaves(others, is_leaf=is_apart)))
    kernel = stored["backbone"].blocks.attention.qkv
    assert [len(block.parts) for block in kernel.parts] == [3] * vit.config.depth
    again = put_together(stored)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for ours, wanted in zip(*map(jax.tree.leaves, (again, model)), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_what_is_trained_scanned_or_added_to_stays_as_it_is():
    vit = make_vit()
    trained = lambda vit: (vit.blocks.attention.qkv, vit.blocks.mlp.out.kernel)
    partly = take_apart(eqx.tree_at(trained, vit, (None, None)))
    assert trained(partly) == (None, None)
    assert is_apart(partly.blocks.attention.qkv_bias)
    scanned = make_vit(execution=nn.Execution(blocks="scan"))
    assert take_apart(scanned) is scanned
    adapted = nn.AdaptedViT.init(vit, 2, key=jr.key(0))
    assert take_apart(adapted) is adapted


@pytest.mark.parametrize("dtype", toy.slow_except(["bfloat16"], ["float32", "bfloat16"]))
def test_a_step_copies_no_blocks_and_gives_what_it_gives_with_stacks(dtype):
    stream = toy.make_stream()
    vit = toy.make_vit(dtype=dtype, execution=UNROLLED)
    method = methods.L2P()
    trainer, state = Trainer.create(method, vit, stream, toy.recipe_for(method), key=jr.key(0))
    stacked = put_together(trainer.setup.frozen)
    other = eqx.tree_at(lambda trainer: trainer.setup.frozen, trainer, stacked)
    batch = next(trainer.batches(stream, 0, seed=0))
    task = trainer.task(stream, 0)
    step: Any = train_step
    results = []
    programs = []
    for each in (trainer, other):
        inputs = (each.setup, each.rule, batch, task)
        programs.append(step.lower(inputs, state).compile().compiled.as_text())
        results.append(step(inputs, jax.tree.map(jnp.copy, state)))
    ours, wanted = (jax.tree.leaves(eqx.filter(each, eqx.is_inexact_array)) for each in results)
    for one, another in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-6, atol=1e-7)
    shape = ",".join(map(str, stacked.backbone.blocks.mlp.out.kernel.shape))
    assert [f"[{shape}]" in program for program in programs] == [False, True]
