"""Each change of one image, against Pillow, `colorsys` and what a rectangle is."""

import colorsys
import functools
import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from promptax.data.augment import color_jitter, rand_augment, random_erasing
from promptax.data.augment.color import LUMA, shift_hue
from promptax.data.augment.jitter import (
    change_brightness,
    change_contrast,
    change_saturation,
    in_random_order,
)
from promptax.data.augment.randaugment import OPERATIONS, operate

HEIGHT, WIDTH = 31, 44
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
# As in a step: inside one compiled function, over a batch.
operate = jax.jit(jax.vmap(operate, (None, 0, 0)))


@functools.partial(jax.jit, static_argnames=("operations", "magnitude"))
def augment(image, keys, *, operations, magnitude):
    one = functools.partial(rand_augment, operations=operations, magnitude=magnitude)
    return jax.vmap(one, (None, 0))(image, keys)


def picture(seed=0, height=HEIGHT, width=WIDTH):
    """Smooth, with noise on it, and neither black nor white."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(30, 220, (5, 6, 3), np.uint8))
    noise = random.integers(-20, 21, (height, width, 3))
    return (np.asarray(small.resize((width, height), BILINEAR)) + noise).astype(np.uint8)


def affine(*rows):
    fill = (128, 128, 128)
    return lambda image: image.transform(image.size, AFFINE, rows, BILINEAR, fillcolor=fill)


def pillow(name, strength):
    """The published operation, at a strength between -1 and 1."""
    size, factor = abs(strength), 1 + 0.9 * strength
    shift = strength * 150 / 331
    enhance = lambda kind: lambda image: kind(image).enhance(factor)
    return {
        "identity": lambda image: image,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * size)),
        "solarize": lambda image: ImageOps.solarize(image, 256 * (1 - size)),
        "brightness": enhance(ImageEnhance.Brightness),
        "contrast": enhance(ImageEnhance.Contrast),
        "color": enhance(ImageEnhance.Color),
        "sharpness": enhance(ImageEnhance.Sharpness),
        "shear_x": affine(1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": affine(1, 0, shift * WIDTH, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, shift * HEIGHT),
        "rotate": lambda image: image.rotate(30 * strength, BILINEAR, fillcolor=(128,) * 3),
    }[name]


STRENGTHS = (-1.0, -0.7, -0.31, 0.0, 0.2, 0.55, 0.9, 1.0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow(name):
    raw = picture()
    number = jnp.full(len(STRENGTHS), OPERATIONS.index(name))
    ours = operate(jnp.asarray(raw / 255, jnp.float32), number, jnp.asarray(STRENGTHS))
    wanted = [np.asarray(pillow(name, s)(Image.fromarray(raw))) for s in STRENGTHS]
    # Pillow cuts values to whole levels, and rounds the mean and the grey that it blends with.
    apart = np.abs(255 * np.asarray(ours) - np.asarray(wanted, float))
    assert apart.max() < 2
    assert apart.mean() < 0.6
    assert name == "identity" or np.abs(np.asarray(ours[-1]) - raw / 255).max() > 0.05


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
@pytest.mark.parametrize("levels", [[7], [0, 255], [100, 101], [3, 3, 3, 3, 200]])
def test_few_levels_are_stretched_as_by_pillow(name, levels):
    raw = np.resize(np.asarray(levels, np.uint8), (HEIGHT, WIDTH, 3))
    number = jnp.asarray([OPERATIONS.index(name)])
    ours = operate(jnp.asarray(raw / 255, jnp.float32), number, jnp.ones(1))[0]
    wanted = pillow(name, 1.0)(Image.fromarray(raw))
    np.testing.assert_allclose(255 * ours, np.asarray(wanted), atol=1)


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_augmented_images_stay_in_range_and_follow_from_their_keys(seed):
    image = jr.uniform(jr.key(seed), (9, 7, 3))
    keys = jr.split(jr.key(seed), 16)
    run = lambda keys: np.asarray(augment(image, keys, operations=2, magnitude=10.0))
    out = run(keys)
    assert out.shape == (16, 9, 7, 3)
    assert ((out >= 0) & (out <= 1)).all()
    np.testing.assert_array_equal(out, run(keys))
    np.testing.assert_array_equal(out[::-1], run(keys[::-1]))
    assert len(np.unique(out.reshape(16, -1), axis=0)) > 8


def test_every_operation_is_drawn_in_both_directions_and_equally_often():
    image = jnp.asarray(picture() / 255, jnp.float32)
    numbers = jnp.repeat(jnp.arange(len(OPERATIONS)), 2)
    known = operate(image, numbers, jnp.asarray([0.9, -0.9] * len(OPERATIONS)))
    out = augment(image, jr.split(jr.key(0), 1400), operations=1, magnitude=9.0)
    flat = lambda images: np.asarray(images).reshape(len(images), -1)[:, ::7]
    nearest = np.abs(flat(out)[:, None] - flat(known)[None]).max(-1)
    assert (nearest.min(1) < 1e-5).all()
    counts = np.bincount(nearest.argmin(1) // 2, minlength=len(OPERATIONS))
    assert (np.abs(counts - 100) < 40).all()
    signed = np.bincount(nearest.argmin(1), minlength=2 * len(OPERATIONS)).reshape(-1, 2)
    both = [OPERATIONS.index(name) for name in OPERATIONS[5:]]
    assert (signed[both] > 25).all()


@pytest.mark.parametrize("size", toy.slow_except([(1, 5)], [(1, 1), (1, 5), (2, 3)]))
def test_images_of_a_few_pixels_are_augmented_too(size):
    image = jr.uniform(jr.key(0), (*size, 3))
    out = augment(image, jr.split(jr.key(1), 64), operations=3, magnitude=10.0)
    assert out.shape == (64, *size, 3)
    assert bool(((out >= 0) & (out <= 1)).all())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (change_brightness, ImageEnhance.Brightness),
        (change_contrast, ImageEnhance.Contrast),
        (change_saturation, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_a_colour_is_changed_as_by_pillow(change, kind, factor):
    raw = picture()
    ours = change(jnp.asarray(raw / 255, jnp.float32), jnp.float32(factor))
    wanted = kind(Image.fromarray(raw)).enhance(factor)
    assert np.abs(255 * np.asarray(ours) - np.asarray(wanted, float)).max() < 2


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=4, max_size=4), st.floats(-0.5, 0.5)
)
def test_the_hue_turns_as_in_colorsys(pixels, turn):
    image = np.asarray(pixels).reshape(2, 2, 3) / 255

    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    wanted = np.apply_along_axis(turned, -1, image)
    ours = shift_hue(jnp.asarray(image, jnp.float32), jnp.float32(turn))
    np.testing.assert_allclose(ours, wanted, atol=2e-5)


def test_colours_change_in_every_order():
    image = jnp.asarray(picture() / 255, jnp.float32)
    amounts = {change_brightness: 1.9, change_contrast: 1.6, change_saturation: 1.7, shift_hue: 0.2}
    ranges = {change: (amount, amount) for change, amount in amounts.items()}
    out = jax.jit(jax.vmap(lambda key: in_random_order(image, key, ranges)))(
        jr.split(jr.key(0), 300)
    )
    orders = []
    for order in itertools.permutations(amounts):
        changed = image
        for change in order:
            changed = change(changed, jnp.float32(amounts[change]))
        orders.append(changed)
    apart = np.abs(np.asarray(out)[:, None] - np.stack(orders)).mean((2, 3, 4))
    assert (apart.min(1) < 1e-5).all()
    assert len(set(apart.argmin(1))) == len(orders) == 24


def test_the_amounts_of_jitter_are_uniform_and_each_strength_is_its_own():
    image = jnp.broadcast_to(jnp.asarray([0.3, 0.2, 0.1]), (2, 2, 3))
    keys = jr.split(jr.key(0), 1000)
    jitter = lambda **strengths: np.asarray(
        jax.jit(jax.vmap(lambda key: color_jitter(image, key, **strengths)))(keys)
    )
    factor = jitter(brightness=0.4)[:, 0, 0, 0] / 0.3
    assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert jitter(brightness=3.0).min() < 0.01  # never below black
    luma = jitter(saturation=0.5) @ np.asarray(LUMA)
    np.testing.assert_allclose(luma, 0.3 * 0.299 + 0.2 * 0.587 + 0.1 * 0.114, atol=1e-5)
    np.testing.assert_allclose(jitter(hue=0.5).max(-1), 0.3, atol=1e-6)
    np.testing.assert_array_equal(jitter(), np.broadcast_to(image, (1000, 2, 2, 3)))


def test_jitter_stays_in_range():
    images = jr.uniform(jr.key(0), (200, 5, 6, 3))
    strengths = dict.fromkeys(("brightness", "contrast", "saturation"), 3.0)
    jitter = lambda image, key: color_jitter(image, key, **strengths, hue=0.5)
    out = jax.jit(jax.vmap(jitter))(images, jr.split(jr.key(1), 200))
    assert out.shape == images.shape
    assert bool(((out >= 0) & (out <= 1)).all())


def erased(count, probability=1.0, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), size=(40, 30)):
    image = jnp.full((*size, 3), 9.0)
    erase = lambda key: random_erasing(
        image, key, probability=probability, area=area, aspect=aspect
    )
    return np.asarray(jax.jit(jax.vmap(erase))(jr.split(jr.key(0), count)))


def test_a_rectangle_of_normal_noise_is_erased_and_the_rest_untouched():
    out = erased(500)
    hit = (out != 9).any(-1)
    np.testing.assert_array_equal(out[~hit], 9)
    tall, wide = hit.any(2).sum(1), hit.any(1).sum(1)
    assert (hit.sum((1, 2)) == tall * wide).all()  # all of its bounding box
    noise = out[hit].ravel()
    assert stats.kstest(noise[:: len(noise) // 5000], "norm").pvalue > 1e-3
    for extent, size in ((tall, 40), (wide, 30)):
        assert (extent > 0).all()
        assert (extent < size).all()
    # Each side is rounded to pixels.
    assert ((tall + 0.5) * (wide + 0.5) >= 0.02 * 1200).all()
    assert ((tall - 0.5) * (wide - 0.5) <= 1200 / 3).all()
    assert ((tall + 0.5) / (wide - 0.5) >= 0.3).all()
    assert ((tall - 0.5) / (wide + 0.5) <= 1 / 0.3).all()
    assert abs(np.mean(tall * wide) / 1200 - 0.17) < 0.02
    corners = np.unique(np.stack([hit.any(2).argmax(1), hit.any(1).argmax(1)]), axis=1)
    assert corners.shape[1] > 200


def test_as_many_images_are_erased_as_asked():
    assert abs((erased(1000, 0.25) != 9).any((1, 2, 3)).mean() - 0.25) < 0.05


def test_what_never_fits_is_not_erased():
    np.testing.assert_array_equal(erased(20, area=(1.0, 1.0)), 9)


def test_the_smoothing_is_pillows():
    raw = picture(3)
    number = jnp.asarray([OPERATIONS.index("sharpness")])
    ours = operate(jnp.asarray(raw / 255, jnp.float32), number, jnp.asarray([-1.0]))[0]
    smooth = np.asarray(Image.fromarray(raw).filter(ImageFilter.SMOOTH), float)
    np.testing.assert_allclose(255 * ours, 0.9 * smooth + 0.1 * raw, atol=1)
