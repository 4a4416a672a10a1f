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
    """Mix each image of a batch with another one.

    If mixup and CutMix are both on, each image gets one of them with equal probability. Images
    draw independently of one another, and are not mixed with padding.

    Args:
        batch: Prepared images with their labels and weights; an example of weight 0 is padding.
        augment: `mixup` and `cutmix` are the parameters (alpha) of the Beta distributions of the
            share that an image keeps of itself, and `mix_probability` is the probability of
            mixing it at all. With both off nothing is computed.
        key: For the partners and the shares.

    Returns:
        The batch with mixed images, and, for the loss, the label of each image's partner
        (`mixed_label`) and the share that is left of the image itself (`share`).
    """
    if augment.mix_probability == 0 or augment.mixup == augment.cutmix == 0:
        return batch
    images = batch.images
    partner_key, share_key = jr.split(key)
    partner = partners(partner_key, batch.weight)
    size = (images.shape[1], images.shape[2])
    share = lambda key: _own_share(size, augment, key)
    own = jax.vmap(share)(jr.split(share_key, len(images)))
    own = jnp.where((partner == jnp.arange(len(images)))[:, None, None], 1, own)
    mixed = own[..., None] * images + (1 - own[..., None]) * images[partner]
    return dataclasses.replace(
        batch, images=mixed, mixed_label=batch.label[partner], share=own.mean((1, 2))
    )


def partners(key: PRNGKeyArray, weight: Float[Array, " batch"]) -> Int[Array, " batch"]:
    """Draw the position of a partner for each example of a batch.

    The examples that are not padding stand in a circle in random order, and each one's partner is
    the next. So nobody is its own partner, except padding and a single example.
    """
    real = weight > 0
    # Padding comes last in the order, so that the circle closes after the last real example.
    order = jnp.argsort(jnp.where(real, jr.uniform(key, weight.shape), jnp.inf))
    rank = jnp.arange(len(weight))
    next_rank = jnp.where(rank + 1 < real.sum(), rank + 1, 0)
    return jnp.zeros_like(order).at[order].set(order[jnp.where(real[order], next_rank, rank)])


def _own_share(
    shape: tuple[int, ...], augment: Augment, key: PRNGKeyArray
) -> Float[Array, "height width"]:
    """The share that an image keeps of each of its pixels.

    It is the same for all pixels (mixup), or 0 in a rectangle and 1 outside of it (CutMix).
    """
    mix_key, coin_key, mixup_key, cutmix_key = jr.split(key, 4)
    has_mixup = augment.mixup > 0
    has_cutmix = augment.cutmix > 0
    uniform = jr.beta(mixup_key, augment.mixup, augment.mixup) if has_mixup else 1.0
    outside = ~_patch(shape, augment.cutmix, cutmix_key) if has_cutmix else True
    is_mixup = jr.bernoulli(coin_key) if has_mixup and has_cutmix else has_mixup
    own = jnp.where(is_mixup, uniform, jnp.asarray(outside, jnp.float32))
    own = jnp.where(jr.bernoulli(mix_key, augment.mix_probability), own, 1)
    return jnp.broadcast_to(own, shape)


def _patch(shape: tuple[int, ...], alpha: float, key: PRNGKeyArray) -> Bool[Array, "height width"]:
    """A rectangle of the image's aspect around a uniform centre, cut at the border."""
    share_key, centre_key = jr.split(key)
    side = jnp.sqrt(1 - jr.beta(share_key, alpha, alpha))
    centre = jr.uniform(centre_key, (2,))
    # The rounding is that of the authors' code.
    within = lambda size, centre: (
        jnp.abs(jnp.arange(size) + 0.5 - jnp.floor(centre * size)) < jnp.floor(side * size) // 2
    )
    height, width = shape
    return within(height, centre[0])[:, None] & within(width, centre[1])
