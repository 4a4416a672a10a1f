"""Attention and everything else that a device's backend decides.

cuDNN's kernel runs on NVIDIA GPUs only. Here, XLA's implementation of the same function stands in
for it where results are compared, and programs for CUDA are lowered and read, not run.
"""

import functools
import logging
import re
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import UserError, nn
from promptax.core.sharding import make_mesh
from promptax.nn import attention, execution
from promptax.nn.attention import attend
from promptax.nn.execution import (
    AUTO,
    PLAIN,
    Device,
    Execution,
    compiling_for,
    kept_bytes,
    plan,
)
from promptax.training.steps import _step
from promptax.training.trainer import Trainer

CONFIG = nn.ViTConfig(patch=8, dim=32, depth=4, heads=4, mlp=64, image=24)
FUSED = Execution(attention="cudnn", blocks="unroll", remat="nothing", elementwise="recomputed")
HEADS, HEAD_DIM, BATCH = 4, 8, 2


HOPPER = Device("gpu", capability=9.0, memory=80 * 10**9)


@pytest.fixture
def hopper(monkeypatch):
    """Make promptax and JAX believe in a GPU: enough to trace and to lower, not to run."""
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91200)
    execution._log_once.cache_clear()
    with compiling_for(HOPPER):
        yield


@pytest.fixture
def stand_in(hopper, monkeypatch):
    """XLA's implementation, which takes the same arguments, in the place of cuDNN's."""
    xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    monkeypatch.setattr(attention, "_fused", xla)
    monkeypatch.setattr(execution, "cudnn_refusal", lambda dtype, head_dim: None)


def draw(*shape, seed=0, dtype="float32"):
    return jr.normal(jr.key(seed), shape).astype(dtype)


def close(ours, wanted, tolerance):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        scale = float(jnp.abs(other.astype(jnp.float32)).max())
        error = jnp.abs(one.astype(jnp.float32) - other.astype(jnp.float32)).max()
        assert float(error) <= tolerance * max(1.0, scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    ("queries", "keys", "counted"),
    [
        (8, 8, 8),
        (7, 13, 11),
        pytest.param(1, 5, 5, marks=pytest.mark.slow),
        pytest.param(16, 24, 17, marks=pytest.mark.slow),
        pytest.param(3, 16, 9, marks=pytest.mark.slow),
    ],
)
def test_kernels_agree_and_padding_is_never_attended(
    stand_in, dtype, tolerance, queries, keys, counted
):
    query = draw(BATCH, queries, HEADS, HEAD_DIM, dtype=dtype)
    pair = draw(2, BATCH, keys, HEADS, HEAD_DIM, seed=1, dtype=dtype)
    # Padding may hold anything finite.
    pair = pair.at[:, :, counted:].multiply(100)

    @functools.partial(jax.jit, static_argnums=2)
    def run(query, pair, kernel):
        def loss(query, pair):
            mixed = attend(query, *pair, kernel=kernel, tokens=counted)
            return (mixed.astype(jnp.float32) ** 2).sum(), mixed

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(query, pair)

    fused, plain = run(query, pair, "cudnn"), run(query, pair, "plain")
    close(fused, plain, tolerance)
    assert not jnp.abs(fused[0][1][:, :, counted:]).any()
    changed = run(query, pair.at[:, :, counted:].add(7), "cudnn")
    np.testing.assert_array_equal(changed[1].astype("float32"), fused[1].astype("float32"))


def prompts(kind):
    """Odd lengths, several inserts, prefixes of two lengths."""
    prefix = lambda block, length, kv=2: draw(BATCH, kv, length, HEADS, HEAD_DIM, seed=block)
    insert = lambda block, length: draw(BATCH, length, CONFIG.dim, seed=block)
    return {
        "none": {},
        "read": {"read": 3},
        "inserts": {"inserts": {0: insert(0, 5), 2: insert(2, 3)}, "read": 8},
        "prefixes": {"prefixes": {0: prefix(0, 5), 1: prefix(1, 5), 2: prefix(2, 3, 1)}, "read": 1},
        "both": {"inserts": {0: insert(0, 7)}, "prefixes": {0: prefix(0, 2), 3: prefix(3, 1)}},
    }[kind]


def outcome(vit, given):
    """The encoded tokens, and the gradients of the ViT and of the prompts."""
    arrays, fixed = eqx.partition(given, eqx.is_array)
    images = jr.uniform(jr.key(9), (BATCH, 24, 24, 3))

    @eqx.filter_jit
    @functools.partial(eqx.filter_grad, has_aux=True)
    def run(both):
        vit, arrays = both
        x = vit.tokens(vit.patches(images))
        x = vit.encode(x, **eqx.combine(arrays, fixed)).astype(jnp.float32)
        return (x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum(), x

    return run((vit, arrays))


@pytest.mark.parametrize(
    "kind", toy.slow_except(["both"], ["none", "read", "inserts", "prefixes", "both"])
)
@pytest.mark.parametrize("blocks", toy.slow_except(["unroll"], ["scan", "unroll"]))
def test_a_sequence_padded_once_gives_the_same_features_and_gradients(stand_in, kind, blocks):
    plain = nn.ViT(CONFIG, key=jr.key(0), execution=Execution("plain", "scan", "projections"))
    fused = nn.ViT(CONFIG, key=jr.key(0), execution=Execution("cudnn", blocks, "nothing"))
    ours, wanted = outcome(fused, prompts(kind)), outcome(plain, prompts(kind))
    assert ours[1].shape == wanted[1].shape
    close(ours, wanted, 1e-4)


def test_seeds_can_be_mapped_over_attention_with_padding(stand_in):
    vit = nn.ViT(CONFIG, key=jr.key(0), execution=FUSED)
    inserts = draw(3, BATCH, 5, CONFIG.dim)
    x = draw(BATCH, 10, CONFIG.dim)
    run = lambda insert: vit.encode(x, inserts={0: insert})
    wanted = jax.lax.map(run, inserts)
    close(jax.jit(jax.vmap(run))(inserts), wanted, 1e-5)


@pytest.mark.parametrize("kind", ["none", "inserts", "prefixes"])
def test_the_program_for_cuda_has_fused_attention_and_no_scores(hopper, kind):
    """Of a whole forward and backward pass, in bfloat16 at the published size."""
    config = nn.vit_config("vit-b/16")
    depth, heads, width = 3, config.heads, config.dim // config.heads
    config = nn.ViTConfig(16, config.dim, depth, heads, config.mlp)
    make = lambda: nn.ViT(config, key=jr.key(0), dtype="bfloat16")
    vit = eqx.filter_eval_shape(make)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    images = array(BATCH, 224, 224, 3)
    given, read = {
        "none": ({}, 1),
        "inserts": ({"inserts": {0: array(BATCH, 40, config.dim)}}, 40),
        "prefixes": ({"prefixes": {0: array(BATCH, 2, 5, heads, width)}}, 1),
    }[kind]

    def loss(given, vit, images):
        x = vit.encode(vit.tokens(vit.patches(images)), **given, read=read)
        return x.astype(jnp.float32).sum()

    def both(given, vit, images):
        return jax.value_and_grad(loss, argnums=0 if given else 1)(given, vit, images)

    lowered = jax.jit(both).trace(given, vit, images).lower(lowering_platforms=("cuda",))
    program = lowered.as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmax\(", program)) == depth
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmaxBackward\(", program)) == depth
    shapes = [tuple(map(int, shape.split("x"))) for shape in re.findall(r"<([\dx]+)xf32>", program)]
    assert shapes
    scores = [shape for shape in shapes if len(shape) == 4 and min(shape[2:]) >= 197]
    assert not scores, "a matrix of scores is stored"
    operands = re.findall(r"dot_general .*: \(tensor<(.*)xbf16>, tensor<(.*)xbf16>\)", program)
    patches = f"{BATCH}x14x16x14x16x3"
    of_blocks = [shapes for shapes in operands if patches not in shapes]
    assert len(of_blocks) > 6 * depth
    # XLA would transpose arrays of three axes in memory, and copy the residual.
    assert all(shape.count("x") == 1 for shapes in of_blocks for shape in shapes), of_blocks
    lengths = {int(n) for n in re.findall(rf"tensor<{BATCH}x(\d+)x{heads}x{width}xbf16>", program)}
    assert 200 in lengths if kind != "inserts" else 240 in lengths


def test_an_exported_program_is_serialised_for_cuda(hopper):
    query = jax.ShapeDtypeStruct((2, 13, 4, 64), jnp.bfloat16)
    checks = [
        jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{part}")
        for part in ("", "Backward")
    ]
    loss = lambda x: attend(x, x, x, kernel="cudnn").astype(jnp.float32).sum()
    exported = jax.export.export(
        jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=checks
    )(query)
    assert "__cudnn$fmhaSoftmaxBackward" in exported.mlir_module()


def test_a_cpu_computes_as_it_always_has():
    assert plan(AUTO, CONFIG, "bfloat16", batch=1, tokens=10) == PLAIN
    assert (PLAIN.attention, PLAIN.blocks, PLAIN.remat) == ("plain", "scan", "projections")
    assert PLAIN.multiple == 1


def test_a_gpu_is_given_what_is_fastest_on_it(hopper):
    chosen = plan(AUTO, nn.vit_config("vit-b/16"), "bfloat16", batch=128, tokens=237)
    assert chosen == execution.Plan("cudnn", "unroll", "nothing", "recomputed")
    asked = Execution("plain", "scan", "all", "saved")
    assert plan(asked, CONFIG, "bfloat16", batch=1, tokens=10) == execution.Plan(
        "plain", "scan", "all", "saved"
    )


def test_remat_is_the_least_that_fits(hopper):
    config = nn.vit_config("vit-h/14")
    remat = lambda batch: plan(AUTO, config, "bfloat16", batch=batch, tokens=297).remat
    chosen = [remat(batch) for batch in (8, 64, 128, 256, 512, 4096)]
    order = ["nothing", "projections", "all"]
    assert [order.index(each) for each in chosen] == sorted(map(order.index, chosen))
    assert set(chosen) == set(order)
    for trained in (False, True):
        kept = [
            kept_bytes(config, "bfloat16", policy, trained=trained) for policy in execution.POLICIES
        ]
        assert kept == sorted(kept, reverse=True)
    with compiling_for(replace(HOPPER, memory=10**13)):
        assert remat(4096) == "nothing"


MIB = 2**20


@pytest.mark.parametrize(
    ("size", "dtype", "remat", "trained", "tokens", "reported"),
    [
        ("vit-b/16", "bfloat16", "nothing", False, 240, 5371),
        ("vit-b/16", "bfloat16", "projections", False, 240, 4864),
        ("vit-h/14", "bfloat16", "projections", False, 304, 27161),
        ("vit-b/16", "float32", "projections", False, 237, 9616),
        ("vit-b/16", "bfloat16", "all", False, 240, 1356),
        ("vit-h/14", "bfloat16", "all", False, 304, 4763),
        ("vit-l/16", "bfloat16", "nothing", False, 240, 14384),
        ("vit-h/14", "bfloat16", "nothing", False, 304, 30380),
        ("vit-b/16", "bfloat16", "nothing", True, 200, 7054),
        ("vit-b/16", "float32", "nothing", False, 237, 14262),
        ("vit-b/16", "float32", "nothing", True, 197, 16948),
    ],
)
def test_what_is_kept_is_what_the_compiler_reports(size, dtype, remat, trained, tokens, reported):
    """MiB of temporary memory for batches of 128 on an H100 or H200, with jax 0.11: of L2P (by
    `scripts/memory.py --card`), or of fine-tuning where the blocks are trained."""
    config = nn.vit_config(size)
    scores = config.heads * tokens if dtype == "float32" else 0
    kept = kept_bytes(config, dtype, remat, trained=trained, scores=scores)
    assert 128 * tokens * kept / MIB == pytest.approx(reported, rel=0.08)


@pytest.mark.parametrize(("name", "recomputes"), [("l2p", False), ("finetune", True)])
def test_blocks_that_are_not_trained_keep_less(hopper, name, recomputes):
    """Only the inputs of trained kernels do not fit."""
    method = toy.METHODS[name]
    vit = toy.make_vit(execution=Execution(attention="plain", blocks="unroll"))
    stream = toy.make_stream()
    recipe = toy.recipe_for(method)
    mesh = make_mesh(1, 1)
    trainer, state = Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(0))
    batch = next(trainer.batches(stream, 0, seed=0))
    config = vit.config
    tokens = config.patches + 1 + (4 if name == "l2p" else 0)
    parameters = config.depth * config.dim * (4 * config.dim + 2 * config.mlp)
    needed = []
    for trained, of_parameter in ((False, 4), (True, 16)):
        scores = config.heads * tokens
        kept = kept_bytes(config, "float32", "nothing", trained=trained, scores=scores)
        needed.append(len(batch.label) * tokens * kept + of_parameter * parameters)
    memory = round(sum(needed) / 2 / execution.SHARE_OF_MEMORY)
    inputs = (trainer.setup, trainer.rule, batch, trainer.task(stream, 0), state)
    with compiling_for(replace(HOPPER, memory=memory)):
        jaxpr = str(eqx.filter_make_jaxpr(_step)(*inputs)[0])
    assert ("checkpoint" in jaxpr or "remat" in jaxpr) == recomputes


@pytest.mark.parametrize(
    ("dtype", "heads", "words"),
    [
        ("float32", 4, "computes in float32: use Backbone(dtype=bfloat16)"),
        ("bfloat16", 16, "multiple of 8 and at most 128, but these are 2 wide: use another ViT"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_or_replaced(hopper, caplog, dtype, heads, words):
    config = nn.ViTConfig(8, 32, 4, heads, 64, image=24)
    with pytest.raises(UserError, match=f"attention=cudnn.: .*{re.escape(words)}.*attention=plain"):
        plan(Execution(attention="cudnn"), config, dtype, batch=1, tokens=10)
    with caplog.at_level(logging.INFO, logger="promptax"):
        chosen = {plan(AUTO, config, dtype, batch=1, tokens=10).attention for _ in range(3)}
    assert chosen == {"plain"}
    assert len(caplog.records) == 1
    assert words in caplog.text


def test_a_backend_without_the_kernel_is_refused_by_name():
    vit = nn.ViT(CONFIG, key=jr.key(0), dtype="bfloat16", execution=Execution(attention="cudnn"))
    with pytest.raises(UserError, match="needs an NVIDIA GPU, but JAX's backend is 'cpu'"):
        vit(jnp.zeros((1, 24, 24, 3)))
    volta = compiling_for(Device("gpu", capability=7.5))
    with volta, pytest.raises(UserError, match=r"capability 8.0, but this GPU has 7.5"):
        vit(jnp.zeros((1, 24, 24, 3)))
