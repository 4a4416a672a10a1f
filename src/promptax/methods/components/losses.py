"""Losses of a classifier, weighted so that padding does not count."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32

from promptax.core.precision import exact_einsum
from promptax.core.types import Batch
from promptax.methods.base import Logits, Scalar


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


def symmetric_cross_entropy(
    logits: Logits, target: Float32[Array, "batch classes"], classes: Bool[Array, " classes"]
) -> Float32[Array, " batch"]:
    """The mean of the cross-entropies of target from logits and of logits from target.

    Args:
        logits: Scores of all classes.
        target: Probabilities of all classes.
        classes: The classes that compete.
    """
    log = jax.nn.log_softmax(jnp.where(classes, logits, -1e30))
    reverse = jnp.exp(log) * jnp.log(jnp.clip(target, 1e-4, 1))
    return -0.5 * (target * log + reverse).sum(1)


def soft_labels(batch: Batch, classes: int) -> Float32[Array, "batch classes"]:
    """One-hot labels; those of a mixed example are weighted by its shares."""
    label = jax.nn.one_hot(batch.label, classes)
    if batch.mixed_label is None or batch.share is None:
        return label
    share = batch.share[:, None]
    return share * label + (1 - share) * jax.nn.one_hot(batch.mixed_label, classes)


def contrastive(
    rows: Float[Array, "rows dim"], weight: Float[Array, " rows"], temperature: Scalar
) -> Float[Array, ""]:
    """Mean cross-entropy of identifying each row among all rows by its products with them.

    Args:
        rows: Mean features of earlier classes, and the features of a batch.
        weight: 1 for a row that takes part, 0 for one that does not.
        temperature: Divides the products (tau).
    """
    # A row of weight 0 does not count, but competes with itself, so that it stays finite.
    competes = (weight > 0) | jnp.eye(len(rows), dtype=bool)
    products = exact_einsum("rd,sd->rs", rows, rows)
    similarity = jnp.where(competes, products / temperature, -jnp.inf)
    return weighted_mean(-jnp.diag(jax.nn.log_softmax(similarity)), weight)
