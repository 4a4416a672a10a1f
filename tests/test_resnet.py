"""ResNets: their features and gradients, their files, and methods on them."""

import functools
import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import safetensors.numpy
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from others import import_timm

import promptax
from promptax import UserError, methods, nn
from promptax.core.settings import Optimizer, Schedule
from promptax.core.sharding import make_mesh
from promptax.methods.base import only
from promptax.training.loop import StepDone, train_task
from promptax.training.trainer import Trainer

BASIC = nn.ResNetConfig("basic", (1, 2), width=8, small_stem=True, image=16)
BOTTLENECK = nn.ResNetConfig("bottleneck", (2, 1, 1), width=4, image=25)


@functools.cache
def make_resnet(config=BASIC, **options):
    """A ResNet of random parameters, with statistics measured on images as after pre-training."""
    like = eqx.filter_eval_shape(lambda: nn.ResNet(config, key=jr.key(0), **options))
    random, leaves = np.random.default_rng(0), {}
    for name, leaf in jax.eval_shape(nn.resnet_leaves, like).items():
        if "running" not in name:
            kernel = leaf.ndim == 4
            scale = np.sqrt(2 / np.prod(leaf.shape[1:])) if kernel else 0.2
            leaves[name] = random.normal(0, scale, leaf.shape)
            leaves[name] += not kernel and name.endswith("weight")
    reference(leaves, config, make_images(config, 16))
    return nn.resnet_from_leaves(like, leaves)


def leaves_of(resnet):
    return {name: np.array(leaf) for name, leaf in nn.resnet_leaves(resnet).items()}


def make_images(config, count=3):
    return np.random.default_rng(0).random((count, config.image, config.image, 3), np.float32)


# --- the same in plain NumPy, from the names of a file ----------------------------------------


def windows(x, side, stride, fill):
    """For every tap of a kernel, the pixels of the input that it sees."""
    half = side // 2
    margins = np.array([(0, 0), (half, half), (half, half), (0, 0)])
    x = np.pad(x, margins, constant_values=fill)
    last = x.shape[1] - side + 1
    for i, j in itertools.product(range(side), repeat=2):
        yield i, j, x[:, i : i + last : stride, j : j + last : stride]


def normed_convolution(p, conv, norm, x, stride=1):
    """A convolution and its batch norm; statistics that `p` lacks are measured and put into it."""
    kernel = p[f"{conv}.weight"]
    taps = windows(x, kernel.shape[2], stride, 0.0)
    x = np.sum([tap @ kernel[:, :, i, j].T for i, j, tap in taps], axis=0)
    mean = p.setdefault(f"{norm}.running_mean", x.mean((0, 1, 2)))
    variance = p.setdefault(f"{norm}.running_var", x.var((0, 1, 2)))
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return x * p[f"{norm}.weight"] + p[f"{norm}.bias"]


def reference(p, config, images):
    relu = lambda x: np.maximum(x, 0)
    x = relu(normed_convolution(p, "conv1", "bn1", images, 1 if config.small_stem else 2))
    if not config.small_stem:
        x = np.max([tap for _, _, tap in windows(x, 3, 2, -np.inf)], axis=0)
    sides = (3, 3) if config.block == "basic" else (1, 3, 1)
    for stage, depth in enumerate(config.depths):
        for n in range(depth):
            name = f"layer{stage + 1}.{n}."
            stride = 2 if stage and not n else 1
            y = x
            for c, side in enumerate(sides, 1):
                # The stride is that of the first convolution that sees neighbours.
                step = stride if c == sides.index(3) + 1 else 1
                assert p[f"{name}conv{c}.weight"].shape[2] == side
                y = normed_convolution(p, f"{name}conv{c}", f"{name}bn{c}", relu(y), step)
            if f"{name}downsample.0.weight" in p:
                down = f"{name}downsample."
                x = normed_convolution(p, f"{down}0", f"{down}1", x, stride)
            x = relu(x + y)
    return x.mean((1, 2))


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK], ids=lambda config: config.block)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_features_agree_with_plain_numpy(config, dtype, tolerance):
    resnet, images = make_resnet(config, dtype=dtype), make_images(config)
    wanted = reference(leaves_of(resnet), config, images)
    ours = eqx.filter_jit(resnet)(jnp.asarray(images))
    assert ours.shape == wanted.shape == (3, resnet.dim)
    assert ours.dtype == jnp.float32
    assert np.std(wanted, axis=0).max() > 0.01 * np.abs(wanted).max()
    np.testing.assert_allclose(ours, wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("remat", [False, True])
def test_the_gradient_is_the_slope_of_plain_numpy(remat):
    """Along a random direction through all parameters and statistics."""
    resnet, images = make_resnet(BOTTLENECK, remat=remat), make_images(BOTTLENECK)
    random = np.random.default_rng(1)
    weight = random.normal(size=(3, resnet.dim))
    loss = lambda resnet: (resnet(jnp.asarray(images)) * weight.astype(np.float32)).sum()
    grads = leaves_of(eqx.filter_jit(eqx.filter_grad(loss))(resnet))
    leaves = leaves_of(resnet)
    way = {name: random.normal(size=leaf.shape) for name, leaf in leaves.items()}
    step = lambda h: {name: leaf + h * way[name] for name, leaf in leaves.items()}
    value = lambda h: (reference(step(h), BOTTLENECK, images.astype(float)) * weight).sum()
    slope = (value(1e-8) - value(-1e-8)) / 2e-8
    np.testing.assert_allclose(sum((grads[k] * way[k]).sum() for k in way), slope, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("resnet18", 224), ("resnet50", 224), ("resnet18", 97)])
def test_features_agree_with_timm(name, size):
    """Weights, scales, biases and running statistics all random."""
    timm, torch = import_timm(), pytest.importorskip("torch")
    random = np.random.default_rng(0)
    model = timm.create_model(name).eval()
    for key, value in model.state_dict().items():
        if value.ndim == 1:
            low, high = (0.5, 1.5) if key.endswith(("weight", "var")) else (-0.3, 0.3)
            value.copy_(torch.tensor(random.uniform(low, high, value.shape)))
    leaves = {key: value.numpy() for key, value in model.state_dict().items()}
    images = random.random((2, size, size, 3), np.float32)
    with torch.no_grad():
        maps = model.forward_features(torch.tensor(images).permute(0, 3, 1, 2))
        wanted = model.forward_head(maps, pre_logits=True).numpy()
    resnet = nn.resnet_weights(name, "", leaves).build(size)
    assert resnet.config == nn.resnet_config(name.replace("resnet", "resnet-"), size)
    ours = eqx.filter_jit(resnet)(jnp.asarray(images))
    np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max())


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parameters"), [("resnet-18", 11_176_512), ("resnet-50", 23_508_032)]
)
def test_a_named_size_has_the_published_number_of_parameters(size, parameters):
    make = lambda: nn.ResNet(nn.resnet_config(size), key=jr.key(0))
    resnet = eqx.filter_eval_shape(make)
    is_fixed = lambda node: isinstance(node, nn.Statistics)
    nodes = jax.tree.leaves(resnet, is_leaf=is_fixed)
    assert sum(leaf.size for leaf in nodes if not is_fixed(leaf)) == parameters


def test_a_random_resnet_of_any_depth_keeps_the_scale_of_its_input():
    """Batch norm with fixed statistics normalises nothing."""
    images = jr.normal(jr.key(0), (4, 16, 16, 3))
    spread = []
    for depth in (1, 8):
        config = replace(BASIC, depths=(depth,), width=32)
        resnet = nn.ResNet(config, key=jr.key(1))
        spread.append(float(jnp.sqrt(jnp.square(eqx.filter_jit(resnet)(images)).mean())))
    assert 0.1 < spread[0] < 10
    assert spread[1] < 3 * spread[0]


def test_a_size_that_does_not_exist_or_fit_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown ResNet size 'resnet18': did you mean 'resnet-18"):
        nn.resnet_config("resnet18")
    with pytest.raises(UserError, match=r"depths are \(2, 0\); expected at least 1"):
        nn.ResNetConfig("basic", (2, 0))
    with pytest.raises(UserError, match="width is 0"):
        nn.ResNetConfig("basic", (2,), width=0)
    with pytest.raises(UserError, match=r"takes images of \(16, 16, 3\), got \(8, 16, 3\)"):
        make_resnet()(jnp.zeros((2, 8, 16, 3)))


# --- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    return make_resnet()


@pytest.fixture
def leaves(resnet):
    return leaves_of(resnet)


def save(path, leaves):
    if path.suffix == ".npz":
        np.savez(path, **leaves)
    else:
        safetensors.numpy.save_file(leaves, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_loads_to_the_same_resnet(resnet, leaves, suffix, tmp_path):
    foreign = {"fc.weight": np.ones((5, 16), np.float32), "fc.bias": np.ones(5, np.float32)}
    counters = {"bn1.num_batches_tracked": np.array(7), "layer1.0.bn1.num_batches_tracked": 7}
    counters = {name: np.asarray(value, np.int64) for name, value in counters.items()}
    path = save(tmp_path / f"resnet{suffix}", {**leaves, **foreign, **counters})
    weights = nn.read_resnet(path)
    assert weights.dropped == ("fc.bias", "fc.weight")
    assert len(weights.sha256) == 64
    loaded = nn.load_resnet(path, 16)
    assert loaded.config == BASIC
    assert toy.same_bits(loaded, resnet)
    assert nn.load_resnet(path, dtype="bfloat16").config.image == 32


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_a_file_in_half_precision_loads_as_float32(leaves, dtype, tmp_path):
    half = {name: leaf.astype(dtype) for name, leaf in leaves.items()}
    loaded = nn.load_resnet(save(tmp_path / "resnet.safetensors", half), 16)
    for name, leaf in leaves_of(loaded).items():
        assert leaf.dtype == np.float32
        assert np.array_equal(leaf, half[name].astype(np.float32))


@settings(max_examples=15)
@given(
    st.sampled_from(["basic", "bottleneck"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 8),
    st.booleans(),
)
def test_the_leaves_tell_the_shape_of_their_resnet(block, depths, width, small):
    config = nn.ResNetConfig(block, tuple(depths), width, small, image=20)
    make = lambda: nn.resnet_leaves(nn.ResNet(config, key=jr.key(0)))
    shapes = jax.eval_shape(make)
    leaves = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}
    assert nn.is_resnet(leaves)
    assert nn.resnet_weights("random", "", leaves).config(20) == config


def changed(name, change):
    return lambda leaves: leaves.update({name: change(leaves[name])})


def poisoned(name, value):
    def poison(leaves):
        leaves[name].ravel()[-1] = value

    return poison


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda leaves: leaves.pop("conv1.weight"), "'conv1.weight' is missing"),
        (lambda leaves: leaves.pop("bn1.running_var"), "'bn1.running_var' is missing"),
        (lambda leaves: leaves.pop("layer2.0.downsample.0.weight"), "downsample.0.weight' is miss"),
        (
            lambda leaves: [leaves.pop(k) for k in [*leaves] if k.startswith("layer2.0.")],
            "'layer2.0.bn1.bias' is missing",
        ),
        (
            lambda leaves: [leaves.pop(k) for k in [*leaves] if k.startswith("layer1.")],
            "'layer1.0.bn1.bias' is missing",
        ),
        (lambda leaves: leaves.update(extra=np.ones(2)), "'extra' is not part of a ResNet"),
        (
            changed("conv1.weight", lambda x: x[:, :, :2]),
            r"\(width, 3, 7, 7\) or \(width, 3, 3, 3\), but has \(8, 3, 2, 3\)",
        ),
        (
            changed("layer1.0.bn2.bias", lambda x: x[:-1]),
            r"'layer1.0.bn2.bias' should have shape \(8,\), but has \(7,\)",
        ),
        (changed("bn1.bias", lambda x: x.astype(int)), "'bn1.bias' should hold floats"),
        (poisoned("layer2.1.conv2.weight", np.nan), "'layer2.1.conv2.weight' holds values that"),
        (poisoned("layer2.1.bn2.running_mean", np.inf), "bn2.running_mean' holds values that are"),
        (poisoned("bn1.running_var", -1), "'bn1.running_var' is a variance"),
    ],
)
def test_a_damaged_leaf_is_named(leaves, damage, words):
    damage(leaves)
    with pytest.raises(UserError, match=words) as error:
        nn.resnet_weights("file.npz", "", leaves).build()
    assert str(error.value).startswith("file.npz: ")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_cannot_be_read_is_a_user_error(leaves, suffix, tmp_path):
    path = tmp_path / f"resnet{suffix}"
    with pytest.raises(UserError, match="not found"):
        nn.load_resnet(path)
    save(path, leaves)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"cannot be read as {suffix}"):
            nn.load_resnet(path)


def test_a_file_of_another_kind_is_a_user_error(tmp_path):
    (tmp_path / "resnet.pth").write_bytes(b"torch")
    with pytest.raises(UserError, match=r"should be a \.safetensors or \.npz file"):
        nn.load_resnet(tmp_path / "resnet.pth")
    vit = {name: np.asarray(leaf) for name, leaf in nn.vit_leaves(toy.make_vit()).items()}
    assert not nn.is_resnet(vit)
    with pytest.raises(UserError, match=r"'conv1.weight' is missing: is this a ResNet\?"):
        nn.load_resnet(save(tmp_path / "vit.npz", vit))


# --- training -----------------------------------------------------------------------------------


def split(resnet):
    """Parameters and statistics."""
    factors = only(resnet, lambda resnet: resnet)
    return eqx.partition(resnet, jax.tree.map(bool, factors))


def test_statistics_are_no_trainable_leaves(resnet):
    params, fixed = split(resnet)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(fixed)]
    assert len(names) == 2 * len(jax.tree.leaves(params)) / 3
    assert all(name.endswith((".mean", ".variance")) for name in names)
    stem = split(resnet.stem.norm)[0]
    assert len(jax.tree.leaves(stem)) == 2


@pytest.mark.parametrize("name", toy.slow_except(["linear"], ["finetune", "linear", "joint"]))
def test_a_method_without_prompts_learns_on_a_resnet(mesh, resnet, name):
    is_joint = name == "joint"
    method = methods.Finetune() if is_joint else toy.METHODS[name]
    stream = toy.make_stream().joint() if is_joint else toy.make_stream()
    # With weight decay, a statistic taken for a parameter would move even without a gradient.
    optimizer = Optimizer("adamw", 2.0 if name == "linear" else 0.1, weight_decay=0.01)
    recipe = replace(toy.RECIPE, optimizer=optimizer, schedule=Schedule(epochs=10, batch_size=16))
    fit = promptax.fit(method, stream, resnet, recipe, mesh=mesh)
    matrix = fit.matrices["task_incremental"].values
    learned = matrix[-1] if is_joint else np.diagonal(matrix)
    assert (learned >= 0.75).all()
    trained, fixed = split(fit.learner.model.backbone)
    before, statistics = split(resnet)
    assert toy.same_bits(fixed, statistics)
    if name == "linear":
        assert toy.same_bits(trained, before)
    else:
        pairs = zip(*(jax.tree.leaves(tree) for tree in (trained, before)), strict=True)
        assert not any(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_prompts_on_a_resnet_are_refused(mesh, resnet, name):
    with pytest.raises(UserError, match="prompts need a ViT: a ResNet has no tokens"):
        promptax.fit(toy.METHODS[name], toy.make_stream(), resnet, toy.RECIPE, mesh=mesh)


def test_eight_devices_take_the_steps_of_one(resnet):
    def run(devices):
        method = methods.Finetune()
        mesh = make_mesh(devices)
        stream = toy.make_stream()
        recipe = toy.recipe_for(method)
        trainer, state = Trainer.create(method, resnet, stream, recipe, mesh=mesh, key=jr.key(0))
        events = train_task(trainer, state, stream, 0, seed=0)
        steps = (event.metrics for event in events if isinstance(event, StepDone))
        return [(step.loss, step.grad_norm) for step in itertools.islice(steps, 4)]

    one, eight = (np.asarray(run(devices)) for devices in (1, 8))
    assert len(set(one[:, 0].tolist())) > 2
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
