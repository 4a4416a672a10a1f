"""Random erasing against the loop of torchvision and timm, in plain NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import ks_2samp

from promptax.data.augment import random_erasing

HEIGHT, WIDTH, COUNT = 24, 40, 3000
AREA, ASPECT = (0.05, 0.6), (0.3, 3.3)


def reference(random):
    """Top, left, height and width of what is erased; all 0 where ten draws do not fit."""
    for _ in range(10):
        area = random.uniform(*AREA) * HEIGHT * WIDTH
        aspect = math.exp(random.uniform(*np.log(ASPECT)))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall < HEIGHT and wide < WIDTH:
            top, left = random.integers(HEIGHT - tall + 1), random.integers(WIDTH - wide + 1)
            return top, left, tall, wide
    return 0, 0, 0, 0


def erased(keys):
    """The same of the images that are erased with these keys."""
    erase = lambda key: random_erasing(
        jnp.full((HEIGHT, WIDTH, 1), jnp.inf), key, probability=1.0, area=AREA, aspect=ASPECT
    )
    changed: Any = np.isfinite(np.asarray(jax.jit(jax.vmap(erase))(keys))[..., 0])
    rows, columns = changed.any(2), changed.any(1)
    # A rectangle is changed as a whole, and nothing outside it.
    assert np.array_equal(changed, rows[:, :, None] & columns[:, None])
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)


def alike(some, others):
    """The test of Kolmogorov and Smirnov; SciPy does not type what it gives."""
    result: Any = ks_2samp(some, others)
    return result.pvalue > 0.01


def test_rectangles_are_distributed_as_in_the_reference():
    random = np.random.default_rng(0)
    wanted = np.array([reference(random) for _ in range(COUNT)])
    found = erased(jr.split(jr.key(0), COUNT))
    for column in range(4):
        assert alike(wanted[:, column], found[:, column])
    assert alike(wanted[:, 2:].prod(1), found[:, 2:].prod(1))
    assert abs((wanted[:, 2] == 0).mean() - (found[:, 2] == 0).mean()) < 0.01
