"""Losses of a classifier, weighted so that padding does not count."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from promptax.core.types import Batch
from promptax.methods.base import Logits


def cross_entropy(
    logits: Logits, batch: Batch, competing: Bool[Array, " classes"]
) -> Float[Array, ""]:
    """Mean cross-entropy under a class mask: classes outside it get no gradient.

    (L2P, section 5: the logits of other tasks' classes are set to minus infinity.) An example that
    is mixed with another one has the labels of both, weighted by their shares.
    """
    masked = jnp.where(competing, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(masked, batch.label)
    if batch.mixed_label is not None and batch.share is not None:
        other = optax.softmax_cross_entropy_with_integer_labels(masked, batch.mixed_label)
        loss = batch.share * loss + (1 - batch.share) * other
    return weighted_mean(loss, batch.weight)


def weighted_mean(
    values: Float[Array, " batch"], weight: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Mean over the examples of weight 1; 0 if there are none."""
    # `where` rather than a product, because the value of a padded example may be infinite.
    return jnp.where(weight > 0, values * weight, 0).sum() / jnp.maximum(weight.sum(), 1)
