"""Preprocessing on the device, against NumPy and against what a crop does to a ramp."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from promptax import UserError, data
from promptax.core.settings import Augment, Images
from promptax.core.types import Batch
from promptax.data.augment import mix, random_crops
from promptax.methods.base import no_query

WHOLE, NEARLY = (1.0, 1.0), (1 - 1e-6, 1.0)
# As in a step: inside one compiled function.
prepare_eval = jax.jit(data.prepare_eval, static_argnums=1)
prepare_train = jax.jit(data.prepare_train, static_argnums=1)


def images(count, height, width, channels=3, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def resized(image, height, width):
    """Bilinear with a triangle that widens where the image shrinks, written out in NumPy."""
    for axis, size in ((0, height), (1, width)):
        inputs = image.shape[axis]
        scale = size / inputs
        at = (np.arange(size) + 0.5) / scale - 0.5
        apart = np.abs(at[:, None] - np.arange(inputs)) * min(scale, 1)
        weights = np.maximum(1 - apart, 0)
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def test_an_image_of_the_right_size_is_not_touched():
    raw = images(3, 16, 16)
    out = prepare_eval(jnp.asarray(raw), Images(size=16, resize=None))
    np.testing.assert_allclose(out, raw / 255, atol=1e-7)
    np.testing.assert_array_equal(out, prepare_eval(jnp.asarray(raw), Images(size=16, resize=16)))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (50, 50), (12, 40)])
def test_another_size_is_resized_with_its_aspect_ignored(height, width):
    raw = images(2, height, width)
    out = prepare_eval(jnp.asarray(raw), Images(size=16, resize=None))
    expected = [resized(image / 255, 16, 16) for image in raw]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_centre_is_cropped():
    raw = images(2, 32, 32)
    out = prepare_eval(jnp.asarray(raw), Images(size=16, resize=32))
    np.testing.assert_allclose(out, raw[:, 8:24, 8:24] / 255, atol=1e-5)
    out = prepare_eval(jnp.asarray(images(1, 64, 64)), Images(size=16, resize=32))
    expected = resized(images(1, 64, 64)[0] / 255, 32, 32)[8:24, 8:24]
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.25, 1),
    st.floats(1, 4),
)
def test_random_crops_are_inside_and_within_the_ranges(seed, smallest, more, narrow, wide):
    largest = smallest + more * (1 - smallest)
    config = Images(crop_area=(smallest, largest), crop_aspect=(narrow, wide))
    top, left, height, width = np.asarray(random_crops(jr.key(seed), 32, config)).T
    slack = 1e-5
    for start, extent in ((top, height), (left, width)):
        assert (start >= 0).all()
        assert (extent > 0).all()
        assert (start + extent <= 1 + slack).all()
    area, aspect = height * width, width / height
    assert (area <= largest + slack).all()
    # Where a side would pass the image it is cut to it, which changes area and aspect.
    uncut = (height < 1) & (width < 1)
    assert (area[uncut] >= smallest - slack).all()
    assert (aspect[uncut] >= narrow * (1 - slack)).all()
    assert (aspect[uncut] <= wide * (1 + slack)).all()


def test_crops_fill_the_ranges():
    top, left, height, width = np.asarray(random_crops(jr.key(0), 2000, Images())).T
    area = height * width
    assert area.min() < 0.08
    assert area.max() > 0.9
    assert abs(np.median(area) - 0.5) < 0.05
    small = area < 0.3
    assert (top[small].min() < 0.03) & ((top + height)[small].max() > 0.97)
    assert (left[small].min() < 0.03) & ((left + width)[small].max() > 0.97)


def test_a_training_crop_is_a_window_of_the_image_stretched_to_size():
    down, across = np.mgrid[:128, :128]
    ramp = np.stack([down, across, 0 * down], axis=-1).astype(np.uint8)
    config = Images(size=16, resize=None, crop_area=(0.1, 0.6), flip=False)
    raw = jnp.asarray(np.repeat(ramp[None], 64, 0))
    out = 255 * np.asarray(prepare_train(raw, config, jr.key(1)))
    # Away from the border a bilinear resize of a ramp is (nearly) a ramp: its slope is the extent.
    inner = slice(2, 14)
    height = np.diff(out[:, inner, inner, 0], axis=1).mean((1, 2)) * 16 / 128
    width = np.diff(out[:, inner, inner, 1], axis=2).mean((1, 2)) * 16 / 128
    assert np.ptp(np.diff(out[:, inner, inner, 0], axis=1), axis=(1, 2)).max() < 0.2
    assert np.ptp(out[:, inner, inner, 0], axis=2).max() < 0.1
    area, aspect = height * width, width / height
    assert ((area > 0.099) & (area < 0.601)).all()
    assert ((aspect > 0.74) & (aspect < 1.35)).all()
    assert np.ptp(area) > 0.3
    corners = out[:, 2, 2, :2].round(1)
    assert len(np.unique(corners, axis=0)) > 50


def test_a_crop_of_nearly_the_whole_image_is_a_plain_resize():
    raw = jnp.asarray(images(4, 20, 20))
    config = Images(size=16, resize=None, crop_area=NEARLY, crop_aspect=WHOLE, flip=False)
    plain = prepare_eval(raw, config)
    np.testing.assert_allclose(prepare_train(raw, config, jr.key(0)), plain, atol=1e-4)


def test_half_of_the_images_are_mirrored_and_nothing_else_happens():
    raw = jnp.asarray(images(2000, 4, 4))
    config = Images(size=4, resize=None, crop_area=WHOLE)
    out, plain = np.asarray(prepare_train(raw, config, jr.key(0))), raw / 255
    same = (out == plain).all((1, 2, 3))
    mirrored = (out == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.46 < mirrored.mean() < 0.54
    never = Images(size=4, resize=None, crop_area=WHOLE, flip=False)
    np.testing.assert_array_equal(prepare_train(raw, never, jr.key(0)), plain)


def test_augmentation_is_a_function_of_the_key():
    raw, config = jnp.asarray(images(8, 16, 16)), Images(size=8, resize=None)
    first, again, other = (prepare_train(raw, config, jr.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert (jnp.diff(first[:2], axis=0) != 0).any()


def test_two_copies_of_an_image_in_a_batch_are_augmented_differently():
    raw = jnp.asarray(np.repeat(images(1, 16, 16), 8, 0))
    out = np.asarray(prepare_train(raw, Images(size=8, resize=None), jr.key(0)))
    assert len(np.unique(out.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("train", [False, True])
def test_values_are_scaled_as_asked(train):
    raw = jnp.asarray(np.array([0, 255], np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1)))
    prepare = lambda normalisation: np.asarray(
        prepare_train(raw.astype(np.uint8), config(normalisation), jr.key(0))
        if train
        else prepare_eval(raw.astype(np.uint8), config(normalisation))
    )
    config = lambda normalisation: Images(size=4, resize=None, normalisation=normalisation)
    for normalisation, mean, deviation in (
        ("unit", 0, 1),
        ("symmetric", 0.5, 0.5),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (
            "clip",
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        ),
    ):
        out = prepare(normalisation)
        assert out.dtype == np.float32
        for image, value in zip(out, (0, 1), strict=True):
            wanted = (value - np.asarray(mean)) / deviation * np.ones((4, 4, 3))
            np.testing.assert_allclose(image, wanted, atol=1e-5)


def test_grey_becomes_three_equal_channels():
    raw = jnp.asarray(images(3, 12, 12, channels=1))
    config = Images(size=8, resize=None)
    for out in (prepare_eval(raw, config), prepare_train(raw, config, jr.key(0))):
        assert out.shape == (3, 8, 8, 3)
        np.testing.assert_array_equal(out[..., :1] == out, True)


ALL = Augment(2, 9.0, 0.4, 0.4, 0.4, 0.1, erase=0.5, mixup=0.8, cutmix=1.0)
"""Everything at once."""
OFF = (
    Images(16, None),
    Images(16, 18, normalisation="symmetric"),
    Images(16, None, crop_area=WHOLE, flip=False),
)


def as_it_was(raw, config, key):
    """Crop, scale and flip, as they were before there was any other augmentation."""
    crop, flip = jr.split(key)
    if config.crop_area == WHOLE:
        images = raw.astype(jnp.float32)
    else:

        def cut(image, window):
            extent = jnp.asarray(image.shape[:2], jnp.float32)
            scale = 16 / (window[2:] * extent)
            start = -window[:2] * extent * scale
            image = image.astype(jnp.float32)
            return jax.image.scale_and_translate(image, (16, 16, 3), (0, 1), scale, start, "linear")

        images = jax.vmap(cut)(raw, random_crops(crop, len(raw), config))
    out = images / 255 if config.normalisation == "unit" else 2 * (images / 255) - 1
    mirror = jr.bernoulli(flip, 0.5, (len(out), 1, 1, 1))
    return jnp.where(mirror, out[:, :, ::-1], out) if config.flip else out


@pytest.mark.parametrize("config", OFF)
def test_without_augmentation_not_a_bit_changes(config):
    raw = jnp.asarray(images(8, 16, 16))
    wanted = jax.jit(as_it_was, static_argnums=1)(raw, config, jr.key(3))
    np.testing.assert_array_equal(prepare_train(raw, config, jr.key(3)), wanted)


def primitives(run, *arguments):
    """How often each primitive occurs in the whole trace."""
    found = Counter()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            found[equation.primitive.name] += 1
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(run)(*arguments).jaxpr)
    return found


def test_what_is_off_is_not_traced():
    raw = jnp.asarray(images(4, 16, 16))

    def run(config):
        def step(raw, key):
            prepared = data.prepare_train(raw, config, key)
            labels = jnp.arange(4, dtype=jnp.int32)
            known = {"query": no_query(prepared), "raw": raw, "is_new": jnp.ones(4, bool)}
            batch = Batch(prepared, labels, jnp.ones(4), **known)
            return mix(batch, config.augment, key).images

        return primitives(step, raw, jr.key(0))

    off, on = run(OFF[0]), run(Images(16, None, augment=ALL))
    was = primitives(lambda raw, key: as_it_was(raw, OFF[0], key), raw, jr.key(0))
    costly = ("scatter-add", "sort", "erf_inv", "scan", "while")
    assert all(on[name] > off[name] == was[name] for name in costly[:4])
    assert off["dot_general"] == was["dot_general"]


def test_an_image_is_augmented_whatever_the_others_are():
    raw, other = images(4, 16, 16), images(8, 16, 16, seed=1)
    other[1] = raw[1]
    config = Images(16, None, augment=replace(ALL, mixup=0.0, cutmix=0.0), normalisation="imagenet")
    first, second = (prepare_train(jnp.asarray(x), config, jr.key(5)) for x in (raw, other[:4]))
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != second[0]).any()
    assert (first != prepare_train(jnp.asarray(raw), config, jr.key(6))).any((1, 2, 3)).all()


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(9, 14, 1), pytest.param(20, 7, 3, marks=pytest.mark.slow)]
)
def test_any_size_and_grey_images_are_augmented(height, width, channels):
    raw = jnp.asarray(images(3, height, width, channels))
    out = prepare_train(raw, Images(16, None, augment=replace(ALL, erase=0.0)), jr.key(0))
    assert out.shape == (3, 16, 16, 3)
    assert bool(((out >= 0) & (out <= 1)).all())
    if channels == 1:
        np.testing.assert_allclose(out, out[..., :1] * jnp.ones(3), atol=1e-5)


def test_noise_is_erased_into_the_normalised_image():
    raw = jnp.full((200, 8, 8, 3), 255, jnp.uint8)
    config = Images(8, None, crop_area=WHOLE, normalisation="imagenet", augment=Augment(erase=1.0))
    out = np.asarray(prepare_train(raw, config, jr.key(0)))
    white = (1 - np.asarray([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    noise = out[np.abs(out - white).max(-1) > 1e-4]
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("operations", -1, "RandAugment operations is -1; expected at least 0"),
        ("magnitude", 11.0, "magnitude is 11.0; expected between 0 and 10"),
        ("hue", 0.6, "hue is 0.6; expected between 0 and 0.5"),
        ("brightness", -0.1, "brightness is -0.1; expected a finite number of at least 0"),
        ("mixup", float("nan"), "mixup is nan; expected a finite number"),
        ("cutmix", float("inf"), "cutmix is inf; expected a finite number"),
        ("erase", 1.1, "erase is 1.1; expected between 0 and 1"),
        ("mix_probability", -1.0, "mix probability is -1.0; expected between 0 and 1"),
        ("erase_area", (0.5, 0.2), "erase area is .* 0 < smallest <= largest <= 1"),
        ("erase_aspect", (0.0, 1.0), "erase aspect is .* 0 < smallest <= largest"),
    ],
)
def test_what_cannot_be_is_a_user_error(field, value, message):
    with pytest.raises(UserError, match=message):
        Augment(**{field: value})
