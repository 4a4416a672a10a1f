"""Losses of a classifier, weighted so that padding does not count."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32

from promptax.core.precision import exact_einsum
from promptax.core.types import Batch
from promptax.methods.base import Logits, Scalar

SMALLEST_TARGET = 1e-4
"""Probability in the place of 0 in a target whose logarithm is taken (Wang et al., 2019)."""
SMALLEST_PROBABILITY = 1e-7


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
    logits: Logits,
    target: Float32[Array, "batch classes"],
    classes: Bool[Array, " classes"],
    *,
    clamped: bool = False,
) -> Float32[Array, " batch"]:
    """The mean of the cross-entropies of target from logits and of logits from target.

    Args:
        logits: Scores of all classes.
        target: Probabilities of all classes.
        classes: The classes that compete.
        clamped: Raise probabilities to `SMALLEST_PROBABILITY`, below which an example has no
            gradient, and use the raised targets in both terms rather than in the second alone.
    """
    log = jax.nn.log_softmax(jnp.where(classes, logits, -1e30))
    raised = jnp.clip(target, SMALLEST_TARGET, 1)
    if clamped:
        log = jnp.log(jnp.clip(jnp.exp(log), SMALLEST_PROBABILITY, 1))
        target = raised
    both = target * log + jnp.exp(log) * jnp.log(raised)
    return -0.5 * jnp.where(classes, both, 0).sum(1)


def soft_labels(batch: Batch, classes: int) -> Float32[Array, "batch classes"]:
    """One-hot labels; those of a mixed example are weighted by its shares."""
    label = jax.nn.one_hot(batch.label, classes)
    if batch.mixed_label is None or batch.share is None:
        return label
    share = batch.share[:, None]
    return share * label + (1 - share) * jax.nn.one_hot(batch.mixed_label, classes)


def contrastive_in_shares(
    means: Float[Array, "rows dim"],
    mean_weight: Float[Array, " rows"],
    features: Float[Array, "batch dim"],
    weight: Float[Array, " batch"],
    *,
    share: int,
    temperature: Scalar,
) -> Float[Array, ""]:
    """Mean over shares of a batch of the contrastive term of means and of the share's features.

    The term grows with the number of rows, so its weight has another meaning if each of several
    devices computes the term over its own rows only.

    Args:
        means: Mean features of earlier classes.
        mean_weight: 1 for a mean that takes part, 0 for one that does not.
        features: The features of a batch.
        weight: 1 for a feature that takes part, 0 for padding.
        share: Features of each share; the last one may have fewer.
        temperature: Divides the products (tau).
    """

    def term(features: Float[Array, "share dim"], weight: Float[Array, " share"]) -> Array:
        rows = jnp.concatenate([means, features])
        return contrastive(rows, jnp.concatenate([mean_weight, weight]), temperature)

    missing = -len(features) % share
    shares = jnp.pad(features, ((0, missing), (0, 0))).reshape(-1, share, features.shape[1])
    weights = jnp.pad(weight, (0, missing)).reshape(-1, share)
    terms = jax.vmap(term)(shares, weights)
    return weighted_mean(terms, weights.any(1).astype(jnp.float32))


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
