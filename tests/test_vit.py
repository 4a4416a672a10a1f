"""The ViT and its weight files."""

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
from promptax.nn.weights import resize_position

BLOCK = "Transformer/encoderblock_1/"
POSITION = "Transformer/posembed_input/pos_embedding"
OLD_NAMES = {
    "LayerNorm_1/": "LayerNorm_2/",
    "MlpBlock_0/": "MlpBlock_3/",
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
}


@pytest.fixture(scope="module")
def vit():
    """Every parameter random, biases and norms too."""
    vit = toy.make_vit()
    leaves, structure = jax.tree.flatten(vit)
    keys = jr.split(jr.key(1), len(leaves))
    noisy = [x + 0.1 * jr.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


@pytest.fixture(scope="module")
def images():
    return jr.uniform(jr.key(2), (4, 16, 16, 3))


@pytest.fixture
def leaves(vit):
    return {name: np.array(leaf) for name, leaf in nn.vit_leaves(vit).items()}


def save(path, leaves):
    np.savez(path, **leaves)
    return path


def test_leaves_round_trip(vit, leaves):
    assert toy.same_bits(nn.vit_from_leaves(toy.make_vit(), leaves), vit)
    assert leaves[BLOCK + "MultiHeadDotProductAttention_0/key/kernel"].shape == (32, 4, 8)


def test_both_naming_generations_load_to_the_same_vit(vit, leaves, tmp_path):
    old = {}
    for name, leaf in leaves.items():
        for new_part, old_part in OLD_NAMES.items():
            name = name.replace(new_part, old_part)
        old[name] = leaf
    assert len(set(old) - set(leaves)) == 3 * 14
    for generation in (leaves, old):
        assert toy.same_bits(nn.load_vit(save(tmp_path / "vit.npz", generation)), vit)


def test_a_foreign_classifier_is_dropped_and_reported(vit, leaves, tmp_path):
    foreign = {"head/kernel": np.ones((32, 7), np.float32), "pre_logits/bias": np.ones(32)}
    weights = nn.read_npz(save(tmp_path / "vit.npz", {**leaves, **foreign}))
    assert weights.dropped == ("head/kernel", "pre_logits/bias")
    assert toy.same_bits(weights.build(), vit)


def changed(name, change):
    return lambda leaves: leaves.update({name: change(leaves[name])})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda leaves: leaves.pop("cls"), "'cls' is missing"),
        (lambda leaves: leaves.pop(POSITION), "'Transformer/posembed_input/pos_embedding' is miss"),
        (lambda leaves: leaves.pop(BLOCK + "LayerNorm_1/bias"), "LayerNorm_1/bias' is missing"),
        (lambda leaves: leaves.pop("embedding/kernel"), "'embedding/kernel' is missing"),
        (lambda leaves: leaves.update(extra=np.ones(2)), "'extra' is not part of a ViT"),
        (
            changed(BLOCK + "MlpBlock_0/Dense_1/bias", lambda x: x[:-1]),
            r"encoderblock_1/MlpBlock_0/Dense_1/bias' should have shape \(32,\), but has \(31,\)",
        ),
        (
            changed(POSITION, lambda x: x[:, :-1]),
            "pos_embedding' should hold a class token and a square of patches, but has 4 tokens",
        ),
        (
            changed(POSITION, lambda x: x[..., :-1]),
            r"pos_embedding' should have shape \(1, 5, 32\), but has \(1, 5, 31\)",
        ),
        (changed("embedding/kernel", lambda x: x[0]), "'embedding/kernel' should have 4 axes"),
        (changed("cls", lambda x: x * np.nan), "'cls' holds values that are not finite"),
        (changed("cls", lambda x: x.astype(int)), "'cls' should hold floats, but has int64"),
        (changed(POSITION, lambda x: x.astype(int)), "should hold floats, but has int64"),
    ],
)
@pytest.mark.parametrize("image", [16, 32])
def test_a_bad_leaf_is_named_with_what_was_expected_and_what_came(
    leaves, tmp_path, damage, words, image
):
    damage(leaves)
    with pytest.raises(UserError, match=words) as caught:
        nn.load_vit(save(tmp_path / "vit.npz", leaves), image)
    assert str(caught.value).startswith("vit.npz: ")


def test_an_unreadable_file_is_a_user_error(leaves, tmp_path):
    whole = save(tmp_path / "vit.npz", leaves).read_bytes()
    np.savez_compressed(tmp_path / "small.npz", **leaves)
    packed = bytearray((tmp_path / "small.npz").read_bytes())
    packed[2000:2100] = bytes(100)
    np.save(tmp_path / "bare.npy", np.ones(3))
    bare = (tmp_path / "bare.npy").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"text", bytes(packed), bare):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.npz' cannot be read"):
            nn.read_npz(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="'none' not found"):
        nn.read_npz("none")


def test_float16_and_float64_weights_become_float32(vit, leaves, tmp_path):
    for dtype in (np.float16, np.float64):
        cast = {name: leaf.astype(dtype) for name, leaf in leaves.items()}
        loaded = nn.load_vit(save(tmp_path / "vit.npz", cast), image=32)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
        assert jnp.allclose(loaded.patch_kernel, vit.patch_kernel, atol=1e-3)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 5), (5, 2), (4, 4)])
@given(value=st.floats(-2, 2, width=32))
def test_resizing_keeps_the_class_token_and_a_constant_grid(old, new, value):
    position = np.full((1, 1 + old**2, 3), value, np.float32)
    position[:, 0] = [7, 8, 9]
    resized = resize_position(position, 1 + new**2)
    assert resized.shape == (1, 1 + new**2, 3)
    assert np.array_equal(resized[0, 0], [7, 8, 9])
    np.testing.assert_allclose(resized[:, 1:], value, rtol=1e-5, atol=1e-6)


def test_resizing_to_the_same_size_changes_nothing_and_to_another_keeps_the_place(vit, leaves):
    assert resize_position(leaves[POSITION], 5) is leaves[POSITION]
    ramp = np.arange(16, dtype=np.float32).repeat(2).reshape(1, 16, 2)
    larger = resize_position(np.concatenate([ramp[:, :1], ramp], 1), 1 + 8**2)[0, 1:, 0]
    # Pixel centres are aligned: place 2 of 8 is at 0.75 of 4. A row of the ramp has 4 values.
    np.testing.assert_allclose(larger.reshape(8, 8)[2, 2:6], 4 * 0.75 + np.arange(4) / 2 + 0.75)


def test_weights_serve_another_image_size(leaves, tmp_path):
    vit = nn.load_vit(save(tmp_path / "vit.npz", leaves), image=28)
    assert vit.config.grid == 3
    assert eqx.filter_jit(vit)(jnp.zeros((2, 28, 28, 3))).shape == (2, 32)
    with pytest.raises(UserError, match=r"takes images of \(28, 28, 3\), got \(16, 16, 3\)"):
        vit(jnp.zeros((2, 16, 16, 3)))


def test_patches_are_a_valid_convolution_that_drops_the_edge():
    vit = nn.ViT(nn.ViTConfig(8, 32, 1, 4, 64, image=20), key=jr.key(0))
    images = jr.uniform(jr.key(3), (2, 20, 20, 3))
    layout = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(
        images, vit.patch_kernel, (8, 8), "VALID", dimension_numbers=layout
    )
    np.testing.assert_allclose(vit.patches(images), wanted.reshape(2, 4, 32), atol=1e-5)


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters(vit, images):
    half = nn.vit_from_leaves(toy.make_vit(dtype="bfloat16"), nn.vit_leaves(vit))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    ours, wanted = eqx.filter_jit(half)(images), eqx.filter_jit(vit)(images)
    assert ours.dtype == jnp.bfloat16
    error = jnp.abs(ours.astype(jnp.float32) - wanted).max()
    assert 0 < error < 0.05 * jnp.abs(wanted).max()


def test_casting_frozen_weights_once_changes_no_bit(vit, images):
    half = nn.vit_from_leaves(toy.make_vit(dtype="bfloat16"), nn.vit_leaves(vit))
    cast = nn.cast_frozen({"backbone": half, "head": jnp.ones(3)})
    assert cast["head"].dtype == jnp.float32
    assert cast["backbone"].blocks.mlp.out.kernel.dtype == jnp.bfloat16
    assert cast["backbone"].blocks.mlp_norm.scale.dtype == jnp.float32
    run = eqx.filter_jit(lambda vit: vit(images))
    assert toy.same_bits(run(cast["backbone"]), run(half))
    # Trained leaves are not there, and float32 stays what it is.
    partly = eqx.filter(half, eqx.is_array)
    partly = eqx.tree_at(lambda vit: vit.blocks.mlp.out.kernel, partly, None)
    assert nn.cast_frozen(partly).blocks.mlp.out.kernel is None
    assert nn.cast_frozen(vit) is vit
    adapted = nn.AdaptedViT.init(half, 2, key=jr.key(0))
    assert nn.cast_frozen(adapted) is adapted


@pytest.mark.parametrize("blocks", toy.slow_except(["unroll"], ["scan", "unroll"]))
@pytest.mark.parametrize("remat", toy.slow_except(["nothing"], ["all", "projections", "nothing"]))
@pytest.mark.parametrize("elementwise", toy.slow_except(["recomputed"], ["saved", "recomputed"]))
def test_how_it_is_executed_changes_neither_values_nor_gradients(
    vit, images, blocks, remat, elementwise
):
    execution = nn.Execution(blocks=blocks, remat=remat, elementwise=elementwise)
    other = nn.vit_from_leaves(toy.make_vit(execution=execution), nn.vit_leaves(vit))
    prefix = {block: jr.normal(jr.key(4), (4, 2, 3, 4, 8)) for block in (0, 1)}

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def run(vit):
        x = vit.tokens(vit.patches(images))
        return (vit.encode(x, prefixes=prefix, read=2) ** 2).sum()

    jaxpr = str(eqx.filter_make_jaxpr(run)(other)[0])
    assert ("scan" in jaxpr) == (blocks == "scan")
    assert ("checkpoint" in jaxpr or "remat" in jaxpr) == (remat != "nothing")
    assert ("optimization_barrier" in jaxpr) == (elementwise == "recomputed")
    for ours, wanted in zip(*(jax.tree.leaves(run(v)) for v in (other, vit)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def test_segments_and_read_give_what_block_after_block_gives(images):
    """Prefixes of several lengths, tokens that enter later, a short read: the scan over runs
    of equal blocks is only a faster way to compute the same."""
    vit = nn.ViT(nn.ViTConfig(8, 32, 6, 4, 64, image=16), key=jr.key(5))
    shapes = {0: (4, 2, 2, 4, 8), 1: (4, 2, 2, 4, 8), 3: (4, 1, 3, 4, 8)}
    prefixes = {n: jr.normal(jr.key(n), shape) for n, shape in shapes.items()}
    inserts = {n: jr.normal(jr.key(n), (4, length, 32)) for n, length in {1: 2, 3: 1}.items()}

    @eqx.filter_jit
    def both(vit):
        x = vit.tokens(vit.patches(images))
        ours = [vit.encode(x, prefixes=prefixes, inserts=inserts, read=n) for n in (None, 1, 3)]
        for n in range(6):
            x = jnp.concatenate([inserts[n], x], axis=1) if n in inserts else x
            x = jax.tree.map(lambda leaf, n=n: leaf[n], vit.blocks)(x, prefixes.get(n))
        return ours, vit.norm(x)

    (whole, one, three), wanted = both(vit)
    assert wanted.shape == (4, 8, 32)
    np.testing.assert_allclose(whole, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one, wanted[:, :1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(three, wanted[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("vit-s/16", 21_665_664),
        ("vit-b/16", 85_798_656),
        ("vit-b/32", 87_455_232),
        ("vit-b/16-2x2", 85_264_128),
        ("vit-b/16-4x4", 85_144_320),
        ("vit-l/16", 303_301_632),
        ("vit-l/32", 305_510_400),
        ("vit-h/14", 630_764_800),
    ],
)
def test_a_named_size_has_the_published_number_of_parameters(size, parameters):
    make = lambda: nn.ViT(nn.vit_config(size), key=jr.key(0))
    shapes = jax.tree.leaves(eqx.filter_eval_shape(make))
    assert sum(leaf.size for leaf in shapes) == parameters


def test_a_size_that_does_not_exist_or_fit_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown ViT size 'vit-b16': did you mean 'vit-b/16'\?"):
        nn.vit_config("vit-b16")
    with pytest.raises(UserError, match="width 30 is not divisible by 4 heads"):
        nn.ViTConfig(8, 30, 3, 4, 64)
    with pytest.raises(UserError, match="image size 4 is smaller than the patch 8"):
        nn.ViTConfig(8, 32, 3, 4, 64, image=4)
