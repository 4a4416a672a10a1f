"""The count of operations, against formulas and against the compiler where it unrolls nothing."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import methods, nn

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from flops import (  # pyright: ignore[reportMissingImports]
    count_flops,
    inference_flops,
)


def vit_flops(config: nn.ViTConfig) -> int:
    """For each image: 2 (N - 1) P d + blocks of 2 N (4 d^2 + 2 d m) + 4 N^2 d, where the last
    block computes queries, attention and MLP for the class token alone."""
    n, d, m = config.grid**2 + 1, config.dim, config.mlp
    embedding = 2 * (n - 1) * config.patch**2 * config.channels * d
    block = 2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d
    last = 2 * n * 2 * d * d + 2 * (2 * d * d + 2 * d * m) + 4 * n * d
    return embedding + (config.depth - 1) * block + last


def test_a_product_and_a_convolution_cost_what_they_do():
    x, y = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert count_flops(lambda x, y: jnp.tanh(x @ y) + 1, x, y) == 2 * 3 * 4 * 5
    loop = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]
    assert count_flops(loop, jnp.ones((4, 4))) == 7 * 2 * 4**3
    either = lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x, lambda: x)
    assert count_flops(either, jnp.ones((4, 4))) == 2 * 4**3
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), "SAME", dimension_numbers=numbers
    )
    assert count_flops(convolve, image, kernel) == 2 * (4 * 4 * 16) * (3 * 3 * 3)


def test_a_vit_costs_what_its_formula_says():
    model = nn.Classifier(toy.make_vit(), 7)
    wanted = vit_flops(toy.CONFIG) + 2 * toy.CONFIG.dim * 7
    assert inference_flops(methods.Finetune(), model, None, 16) == wanted
    # Frozen features are the query, and not computed twice.
    assert inference_flops(methods.LinearProbe(), model, None, 16) == wanted


def test_prompts_cost_a_query_and_a_longer_sequence():
    plain = vit_flops(toy.CONFIG)
    method = toy.METHODS["l2p"]
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    assert 2 * plain < inference_flops(method, model, state, 16) < 4 * plain


def test_the_sum_of_a_kernel_and_its_lora_is_shared_by_a_batch():
    method = methods.SLDC(rank=2)
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    plain = inference_flops(methods.Finetune(), nn.Classifier(toy.make_vit(), 7), None, 16)
    assert inference_flops(method, model, state, 16) == plain


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_the_compiler_counts_the_same_where_no_scan_hides_a_block(depth):
    """It counts what is not a product too, which is little beside in a wide ViT; two blocks are
    not scanned, since the last of them computes the class token alone."""
    config = nn.ViTConfig(8, 512, depth, 8, 2048, image=64)
    vit = nn.ViT(config, key=jr.key(0))
    images = jnp.ones((1, 64, 64, 3))
    compiled = jax.jit(lambda vit, images: vit(images)).lower(vit, images)
    cost = compiled.compile().cost_analysis()
    assert cost is not None
    ours = count_flops(lambda vit, images: vit(images), vit, images)
    assert ours == vit_flops(config)
    np.testing.assert_allclose(cost["flops"], ours, rtol=0.03)
