"""Update rules, and the course of the learning rate over a task."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32, PyTree

from promptax.core.settings import Optimizer, Recipe


def transform(optimizer: Optimizer) -> optax.GradientTransformation:
    """The direction of the update; the step scales it by the traced learning rate."""
    decay = optax.add_decayed_weights(optimizer.weight_decay)
    if optimizer.name == "sgd":
        return optax.chain(decay, optax.trace(optimizer.momentum, optimizer.nesterov))
    adam = optax.scale_by_adam(0.9, 0.999, 1e-8)
    if optimizer.name == "adam":
        return adam
    return optax.chain(adam, decay)


def learning_rate(
    recipe: Recipe, step: Int32[Array, ""], steps: Int32[Array, ""]
) -> Float32[Array, ""]:
    """`rate * batch / 256`, over the course of the task.

    The task's length is traced, so that tasks of other lengths do not compile again.
    """
    optimizer = recipe.optimizer
    peak = optimizer.learning_rate * recipe.schedule.batch_size / 256
    progress = step / steps
    rate = jnp.asarray(peak, jnp.float32)
    if optimizer.schedule == "cosine":
        after = (progress - optimizer.warmup) / max(1 - optimizer.warmup, 1e-6)
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(after, 0, 1)))
    if optimizer.schedule == "step":
        rate = jnp.where(progress < optimizer.step_at, rate, 0.1 * rate)
    if optimizer.warmup > 0:
        rate = rate * jnp.minimum((step + 1) / (steps * optimizer.warmup), 1)
    return rate.astype(jnp.float32)


def update(
    optimizer: Optimizer,
    params: PyTree,
    opt_state: optax.OptState,
    grads: PyTree,
    norm: Float[Array, ""],
    rates: PyTree[Float[Array, ""]],
) -> tuple[PyTree, optax.OptState]:
    """Parameters and state after a step; `norm` is that of `grads`, and each leaf of `rates` is for
    the part of the parameters in its place."""
    if optimizer.clip_norm is not None:
        factor = jnp.minimum(1, optimizer.clip_norm / (norm + 1e-6))
        grads = jax.tree.map(lambda grad: grad * factor, grads)
    updates, opt_state = transform(optimizer).update(grads, opt_state, params)
    scale = lambda rate, part: jax.tree.map(lambda update: -rate * update, part)
    return eqx.apply_updates(params, jax.tree.map(scale, rates, updates)), opt_state
