"""The update rule, and the course of the learning rate over a task."""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32, PyTree

from promptax.core.errors import UserError
from promptax.core.settings import Optimizer

REFERENCE_BATCH = 256
"""Learning rates are given for this batch size and scaled in proportion to the actual one."""
CLIP_EPSILON = 1e-6
"""Added to the gradient norm before dividing by it, as the published code does."""
QUARTER_PERIOD = 0.99 * math.pi / 2
"""Angle of `quarter_cosine` after one advance less than there are epochs: a rate near 0."""
STEP_FACTOR = 0.1
"""Factor by which the `step` schedule lowers the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Optax(Optimizer):
    """Any optimizer of optax, with any of its schedules, in the place of a `px.Optimizer`.

    An example is `px.Optax(transform=optax.lion(optax.cosine_decay_schedule(1e-4, 500)))`. The
    transformation holds the learning rate, which is used as it is, whatever the batch size, and is
    scaled by the factor that a method gives a leaf. Of the other fields, only `clip_norm`, `reset`
    and `skip_nonfinite` have an effect.
    """

    transform: optax.GradientTransformation | None = None
    """The transformation, such as `optax.adamw(1e-3)`. With `reset`, each task starts it afresh,
    and with it its schedule."""
    clip_norm: float | None = None
    """Largest global norm of the gradient of the trainable leaves; None: no clipping."""

    def __post_init__(self):
        if not isinstance(self.transform, optax.GradientTransformation):
            raise UserError(
                f"the transformation is a {type(self.transform).__name__}; expected one of optax, "
                "such as px.Optax(transform=optax.adamw(1e-3))."
            )
        super().__post_init__()


class UpdateRule(eqx.Module):
    """The optimizer as compiled steps see it: numbers are traced, only choices are static.

    A sweep over learning rates or weight decays therefore compiles once.
    """

    name: Literal["adam", "adamw", "sgd"] = eqx.field(static=True)
    schedule: Literal["constant", "cosine", "quarter_cosine", "step"] = eqx.field(static=True)
    schedule_interval: Literal["step", "epoch"] = eqx.field(static=True)
    nesterov: bool = eqx.field(static=True)
    peak: Float32[Array, ""]
    """Learning rate for the actual batch size."""
    epochs: Float32[Array, ""]
    """Epochs of a task, for schedules that change the rate between epochs only."""
    step_at: Float32[Array, ""]
    schedule_floor: Float32[Array, ""]
    warmup: Float32[Array, ""]
    weight_decay: Float32[Array, ""]
    momentum: Float32[Array, ""]
    clip_norm: Float32[Array, ""] | None
    own: optax.GradientTransformation | None = eqx.field(static=True, default=None)
    """A transformation given by the user, which replaces everything but clipping."""

    @classmethod
    def of(cls, optimizer: Optimizer, batch_size: int, epochs: int) -> "UpdateRule":
        """The rule for batches of a size (over all devices), and tasks of so many epochs."""
        number = lambda value: jnp.asarray(value, jnp.float32)
        return cls(
            name=optimizer.name,
            schedule=optimizer.schedule,
            schedule_interval=optimizer.schedule_interval,
            nesterov=optimizer.nesterov,
            peak=number(optimizer.learning_rate * batch_size / REFERENCE_BATCH),
            epochs=number(epochs),
            step_at=number(optimizer.step_at),
            schedule_floor=number(optimizer.schedule_floor),
            warmup=number(optimizer.warmup),
            weight_decay=number(optimizer.weight_decay),
            momentum=number(optimizer.momentum),
            clip_norm=None if optimizer.clip_norm is None else number(optimizer.clip_norm),
            own=optimizer.transform if isinstance(optimizer, Optax) else None,
        )

    def transform(self) -> optax.GradientTransformation:
        """The direction of the update; `update` scales it by the traced learning rate."""
        if self.own is not None:
            # optax adds its updates, and here they are subtracted.
            return optax.chain(self.own, optax.scale(-1.0))
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.name == "sgd":
            return optax.chain(decay, optax.trace(self.momentum, self.nesterov))
        adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
        return adam if self.name == "adam" else optax.chain(adam, decay)

    def learning_rate(self, step: Int32[Array, ""], steps: Int32[Array, ""]) -> Float32[Array, ""]:
        """The learning rate in a step of a task.

        The length of the task is traced, so that tasks of other lengths do not compile again.

        Args:
            step: Number of the step in the task, from 0.
            steps: Number of steps of the task.
        """
        if self.own is not None:
            return jnp.ones(())  # the rate is in the transformation
        epoch = self._epoch(step, steps)
        progress = step / steps
        if self.schedule_interval == "epoch":
            progress = epoch / self.epochs
        rate = self.peak
        if self.schedule == "cosine":
            after_warmup = (progress - self.warmup) / jnp.maximum(1 - self.warmup, 1e-6)
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(after_warmup, 0, 1)))
            rate = rate * (self.schedule_floor + (1 - self.schedule_floor) * cosine)
        if self.schedule == "quarter_cosine":
            # The authors' scheduler is advanced before every epoch but the first, and its first
            # advance only takes it to where it already is.
            advances = jnp.maximum(epoch - 1, 0)
            rate = rate * jnp.cos(QUARTER_PERIOD * advances / jnp.maximum(self.epochs - 1, 1))
        if self.schedule == "step":
            rate = jnp.where(progress < self.step_at, rate, STEP_FACTOR * rate)
        # One step of warm-up at least, so that nothing is divided by zero without one.
        rising = (step + 1) / jnp.maximum(steps * self.warmup, 1)
        return (rate * jnp.minimum(rising, 1)).astype(jnp.float32)

    def _epoch(self, step: Int32[Array, ""], steps: Int32[Array, ""]) -> Float32[Array, ""]:
        """The number of the epoch that a step belongs to, from 0.

        An epoch need not end with a batch: a step belongs to the epoch in which its middle lies.
        """
        return jnp.floor((step + 0.5) / steps * self.epochs)

    def update(
        self,
        params: PyTree,
        opt_state: optax.OptState,
        grads: PyTree,
        norm: Float[Array, ""],
        rates: PyTree,
    ) -> tuple[PyTree, optax.OptState]:
        """Take an optimizer step.

        Args:
            params: The trained leaves.
            opt_state: The optimizer's state.
            grads: Their gradients.
            norm: Global norm of `grads`.
            rates: The learning rate of each leaf, which broadcasts to it. An entry whose rate is 0
                keeps its bits, whatever momentum and weight decay say.

        Returns:
            Parameters and state after the step.
        """
        if self.clip_norm is not None:
            # Not `optax.clip_by_global_norm`, which divides without the published epsilon.
            factor = jnp.minimum(1, self.clip_norm / (norm + CLIP_EPSILON))
            grads = jax.tree.map(lambda grad: grad * factor, grads)
        updates, opt_state = self.transform().update(grads, opt_state, params)
        move = lambda param, update, rate: jnp.where(rate == 0, param, param - rate * update)
        return jax.tree.map(move, params, updates, rates), opt_state
