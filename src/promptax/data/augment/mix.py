"""Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) and CutMix (Yun et al., ICCV 2019,
arXiv 1905.04899)."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from promptax.core.settings import Augment
from promptax.core.types import Batch


def mix(batch: Batch, augment: Augment, key: PRNGKeyArray) -> Batch:
    """Mix each image with another of the batch, and say in the batch with which and how much.

    `mixup` and `cutmix` are the alpha of the Beta distribution of the share that an image keeps;
    where both are on, a fair coin says which one an image gets. Each image draws for itself, and
    padding is mixed with nothing. With both off nothing is computed.
    """
    mixup, cutmix, probability = augment.mixup, augment.cutmix, augment.mix_probability
    if probability == 0 or mixup == cutmix == 0:
        return batch
    images = batch.images
    pair, draw = jr.split(key)
    partner = partners(pair, batch.weight)
    height, width = images.shape[1:3]
    share = lambda key: _own_share(key, height, width, mixup, cutmix, probability)
    own = jax.vmap(share)(jr.split(draw, len(images)))
    own = jnp.where((partner == jnp.arange(len(images)))[:, None, None], 1, own)
    mixed = own[..., None] * images + (1 - own[..., None]) * images[partner]
    mixed_label, share = batch.label[partner], own.mean((1, 2))
    return dataclasses.replace(batch, images=mixed, mixed_label=mixed_label, share=share)


def partners(key: PRNGKeyArray, weight: Float[Array, " batch"]) -> Int[Array, " batch"]:
    """A partner for each example: the next one of a random circle of all that are not padding.

    Padding, and an example that is alone, are their own partners.
    """
    real = weight > 0
    order = jnp.argsort(jnp.where(real, jr.uniform(key, weight.shape), jnp.inf))
    place = jnp.arange(len(weight))
    following = jnp.where(place + 1 < real.sum(), place + 1, 0)
    return jnp.zeros_like(order).at[order].set(order[jnp.where(real[order], following, place)])


def _own_share(
    key: PRNGKeyArray, height: int, width: int, mixup: float, cutmix: float, probability: float
) -> Float[Array, "height width"]:
    """How much of each pixel an image keeps: alike everywhere (mixup), or all or nothing."""
    chance, coin, blend, cut = jr.split(key, 4)
    everywhere = jr.beta(blend, mixup, mixup) if mixup > 0 else 1.0
    outside = ~_patch(cut, cutmix, height, width) if cutmix > 0 else True
    blends = jr.bernoulli(coin) if mixup > 0 and cutmix > 0 else mixup > 0
    own = jnp.where(blends, everywhere, jnp.asarray(outside, jnp.float32))
    own = jnp.where(jr.bernoulli(chance, probability), own, 1)
    return jnp.broadcast_to(own, (height, width))


def _patch(key: PRNGKeyArray, alpha: float, height: int, width: int) -> Bool[Array, "height width"]:
    """A box of the image's aspect around a uniform centre, cut at the border."""
    share, place = jr.split(key)
    side = jnp.sqrt(1 - jr.beta(share, alpha, alpha))
    centre = jr.uniform(place, (2,))
    within = lambda size, centre: (
        jnp.abs(jnp.arange(size) + 0.5 - jnp.floor(centre * size)) < jnp.floor(side * size) // 2
    )
    return within(height, centre[0])[:, None] & within(width, centre[1])
