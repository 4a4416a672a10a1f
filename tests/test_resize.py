"""Resizing and cropping on the device, against Pillow and torchvision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_image import save

from promptax import UserError, data
from promptax.core.settings import STATISTICS, Augment, Images
from promptax.data.augment import random_crops
from promptax.data.image import decode, resize

prepare_eval = jax.jit(data.prepare_eval, static_argnums=1)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SHAPES = [(32, 32), (9, 14), (61, 40), (40, 97)]
INTERPOLATIONS = ["bilinear", "bicubic"]


def noise(height, width, seed=0):
    """Black and white pixels: nothing is harder to interpolate, and cubics overshoot most."""
    return 255 * np.random.default_rng(seed).integers(0, 2, (height, width, 3), np.uint8)


def soft_noise(height, width):
    """Noise without overshoot, for which the order of Pillow's two passes does not matter."""
    return noise(height, width) // 5 + 100


def pillow_resize(pixels, width, height, interpolation):
    """Pillow's resize with the pass along the width first, as all versions before 13 have it."""
    method = RESAMPLING[interpolation]
    narrow = Image.fromarray(pixels).resize((width, len(pixels)), method)
    return np.asarray(narrow.resize((width, height), method)).astype(int)


def on_device(pixels, **settings):
    """Grey levels from 0 to 255 as evaluation prepares them."""
    prepared = prepare_eval(jnp.asarray(pixels[None]), Images(**settings))[0]
    return np.rint(255 * np.asarray(prepared)).astype(int)


def pillow_shorter_side(pixels, resize, size, interpolation):
    """torchvision's `Resize(resize)` and `CenterCrop(size)`, in its own words."""
    height, width = pixels.shape[:2]
    new_long = int(resize * max(height, width) / min(height, width))
    new_width, new_height = (resize, new_long) if width <= height else (new_long, resize)
    resized = pillow_resize(pixels, new_width, new_height, interpolation)
    top = round((new_height - size) / 2.0)
    left = round((new_width - size) / 2.0)
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_direct_resize_is_pillows_to_one_grey_level(shape, interpolation):
    pixels = noise(*shape)
    out = on_device(pixels, size=24, resize=None, interpolation=interpolation)
    expected = pillow_resize(pixels, 24, 24, interpolation)
    assert np.abs(out - expected).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shorter_side_is_resized_as_torchvision_does_it(shape, interpolation):
    pixels = noise(*shape)
    settings = {"resize": 28, "size": 23, "interpolation": interpolation}
    out = on_device(pixels, **settings, keep_aspect=True)
    expected = pillow_shorter_side(pixels, **settings)
    assert np.abs(out - expected).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_files_are_resized_alike_and_then_not_again(shape, interpolation):
    pixels = soft_noise(*shape)
    options = {"keep_aspect": True, "interpolation": interpolation}
    expected = pillow_shorter_side(pixels, 28, 28, interpolation)
    stored = decode(save(pixels), 28, **options)
    np.testing.assert_allclose(stored.astype(int), expected, atol=1)
    np.testing.assert_array_equal(resize(pixels, 28, **options), stored)
    out = on_device(stored, size=24, resize=28, **options)
    wanted = pillow_shorter_side(pixels, 28, 24, interpolation)
    assert np.abs(out - wanted).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pytorchs_interpolation_agrees(interpolation, antialias):
    torch = pytest.importorskip("torch")
    if interpolation == "bicubic" and not antialias:
        pytest.skip("PyTorch's cubic kernel has a = -0.75 without antialiasing, and ours -0.5.")
    pixels = soft_noise(70, 51)
    tensor = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    options = {"mode": interpolation, "antialias": antialias, "align_corners": False}
    expected = torch.nn.functional.interpolate(tensor, size=(24, 24), **options)[0]
    expected = expected.permute(1, 2, 0).numpy()
    options = {"interpolation": interpolation, "antialias": antialias}
    out = prepare_eval(jnp.asarray(pixels[None]), Images(size=24, resize=None, **options))[0]
    np.testing.assert_allclose(255 * np.asarray(out), expected, atol=0.01)


def test_without_antialiasing_pixels_are_skipped():
    pixels = noise(48, 48)
    out = on_device(pixels, size=16, resize=None, antialias=False)
    # The middle of every third pixel is sampled, and its neighbours have no part in it.
    np.testing.assert_array_equal(out, pixels[1::3, 1::3])
    cubic = on_device(pixels, size=16, resize=None, antialias=False, interpolation="bicubic")
    np.testing.assert_array_equal(cubic, pixels[1::3, 1::3])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_training_crop_is_interpolated_as_asked(interpolation):
    # Nearly the whole image, so that the crop is a resize.
    whole = Images(size=16, resize=None, interpolation=interpolation, flip=False)
    nearly = replace(whole, crop_area=(1 - 1e-6, 1.0), crop_aspect=(1.0, 1.0))
    pixels = jnp.asarray(noise(40, 40)[None])
    cropped = data.prepare_train(pixels, nearly, jr.key(0))
    np.testing.assert_allclose(cropped, prepare_eval(pixels, whole), atol=2e-4)


@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from([0, 9]),
)
def test_crops_that_keep_the_aspect_have_it_in_pixels(seed, shape, redraws):
    height, width = shape
    config = Images(keep_aspect=True, crop_area=(0.08, 1.0), crop_redraws=redraws)
    crops = random_crops(jr.key(seed), 32, config, stretch=height / width)
    top, left, tall, wide = np.asarray(crops, np.float64).T
    assert ((top >= 0) & (left >= 0)).all()
    assert ((top + tall <= 1 + 1e-5) & (left + wide <= 1 + 1e-5)).all()
    uncut = (tall < 1) & (wide < 1)
    aspect = (wide * width / (tall * height))[uncut]
    assert ((aspect > 3 / 4 * (1 - 1e-4)) & (aspect < 4 / 3 * (1 + 1e-4))).all()


def test_redrawn_crops_have_torchvisions_distribution():
    """RandomResizedCrop accepts the first of ten crops that fits, so areas are not cut."""
    count = 20_000
    config = Images(crop_area=(0.08, 1.0), crop_redraws=9)
    _, _, height, width = np.asarray(random_crops(jr.key(0), count, config)).T
    random = np.random.default_rng(0)
    area = random.uniform(0.08, 1, 2 * count)
    aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), 2 * count))
    fits = (area / aspect <= 1) & (area * aspect <= 1)
    shares = np.linspace(0.05, 0.95, 19)
    ours = np.quantile(height * width, shares)
    np.testing.assert_allclose(ours, np.quantile(area[fits], shares), atol=0.02)
    assert (height < 1).all()
    assert (width < 1).all()
    # Without redraws, more than a tenth of the crops lose a part of their longer side.
    cut = np.asarray(random_crops(jr.key(0), count, Images(crop_area=(0.08, 1.0))))[:, 2:]
    assert 0.1 < (cut == 1).any(1).mean() < 0.2


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("symmetric", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_images_are_standardised_by_the_statistics_of_the_set(name, mean, deviation):
    pixels = noise(8, 8)
    out = prepare_eval(jnp.asarray(pixels[None]), Images(8, None, normalisation=name))[0]
    np.testing.assert_allclose(out, (pixels / 255 - mean) / deviation, atol=1e-5)
    assert name in STATISTICS


def test_brightness_is_jittered_by_63_of_255_as_in_pycil():
    pixels = jnp.full((4000, 2, 2, 3), 100, jnp.uint8)
    brightness = Augment(brightness=63 / 255)
    config = Images(2, None, crop_area=(1.0, 1.0), flip=False, augment=brightness)
    factor = 2.55 * np.asarray(data.prepare_train(pixels, config, jr.key(0)))[:, 0, 0, 0]
    assert (np.abs(factor - 1) <= 63 / 255 + 1e-5).all()
    # torchvision draws the factor uniformly from 1 - 63 / 255 to 1 + 63 / 255.
    shares = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        np.quantile(factor, shares), 1 + (2 * shares - 1) * 63 / 255, atol=0.02
    )


def test_evaluation_keeps_what_it_needs_of_the_settings():
    config = Images(16, 20, keep_aspect=True, interpolation="bicubic", antialias=False)
    assert config.for_evaluation() == config


def test_the_number_of_redraws_has_a_range():
    with pytest.raises(UserError, match="crop redraws is -1; expected at least 0 and at most 100"):
        Images(crop_redraws=-1)
