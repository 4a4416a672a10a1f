"""The layers of a ViT that work on each token by itself: LayerNorm, linear layer, MLP."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.nn.sizes import Activation

_ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


def rows(x: Float[Array, "*batch dim"]) -> Float[Array, "rows dim"]:
    """The vectors of an array as the rows of a matrix."""
    return x.reshape(-1, x.shape[-1])


class LayerNorm(eqx.Module):
    """Layer normalisation with float32 statistics."""

    scale: Float32[Array, "*stack dim"]
    bias: Float32[Array, "*stack dim"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-6):
        """Start as the plain normalisation: scale 1, bias 0."""
        self.scale = jnp.ones(dim)
        self.bias = jnp.zeros(dim)
        self.eps = eps

    def __call__(
        self, x: Float[Array, "*batch dim"], *, recompute: bool = False
    ) -> Float[Array, "*batch dim"]:
        """Normalise the last axis.

        Args:
            x: of any floating-point type, which the result has too.
            recompute: keep only `x` for the backward pass, and compute the statistics again.
        """
        normalise = _norm_recomputed if recompute else _norm
        return normalise(x, self.scale, self.bias, self.eps)


def _norm(
    x: Float[Array, "*batch dim"],
    scale: Float[Array, " dim"],
    bias: Float[Array, " dim"],
    eps: float,
) -> Float[Array, "*batch dim"]:
    mean, inverse = _statistics(x, eps)
    return ((x - mean) * inverse * scale + bias).astype(x.dtype)


def _statistics(
    x: Float[Array, "*batch dim"], eps: float
) -> tuple[Float32[Array, "*batch 1"], Float32[Array, "*batch 1"]]:
    """The mean of each vector, and the inverse of its standard deviation."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + eps)


# On a GPU, this is bound by memory bandwidth. Automatic differentiation would keep float32 arrays
# of the size of the activations. If the statistics were kept, XLA would compute them in a kernel of
# their own; as it is, the forward pass and the gradient of the input are one kernel each, which
# reads each operand once.
_norm_recomputed = jax.custom_vjp(_norm, nondiff_argnums=(3,))


def _norm_forward(x: Array, scale: Array, bias: Array, eps: float):
    return _norm(x, scale, bias, eps), (x, scale)


def _norm_backward(eps: float, kept: tuple[Array, Array], grad: Array):
    x, scale = kept
    grad = grad.astype(jnp.float32)
    grad_x = _norm_grad(x, scale * grad, eps)
    # This sum over all vectors is another kernel. With its own statistics in it, XLA would write
    # the products to memory before it adds them up. If the scale is frozen, none of it is computed.
    mean, inverse = jax.lax.optimization_barrier(_statistics(jax.lax.optimization_barrier(x), eps))
    products = grad * ((x - mean) * inverse)
    vectors = tuple(range(grad.ndim - 1))
    return grad_x, jnp.sum(products, vectors), jnp.sum(grad, vectors)


def _norm_grad(
    x: Float[Array, "*batch dim"], grad: Float32[Array, "*batch dim"], eps: float
) -> Float[Array, "*batch dim"]:
    """The gradient of the input, from that of the normalised vectors."""
    # Without the barrier, XLA would recognise the values of the forward pass, and might keep those.
    x = jax.lax.optimization_barrier(x)
    mean, inverse = _statistics(x, eps)
    y = (x - mean) * inverse
    centred = grad - jnp.mean(grad, -1, keepdims=True)
    return (inverse * (centred - y * jnp.mean(grad * y, -1, keepdims=True))).astype(x.dtype)


_norm_recomputed.defvjp(_norm_forward, _norm_backward)


class Linear(eqx.Module):
    """`x @ kernel + bias`, with float32 parameters cast to the type of `x`."""

    kernel: Float32[Array, "*stack inputs outputs"]
    bias: Float32[Array, "*stack outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray | None = None):
        """Xavier-uniform kernel and zero bias; all zero without a key."""
        shape = (inputs, outputs)
        self.kernel = jnp.zeros(shape) if key is None else xavier(key, shape, inputs, outputs)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Apply to the last axis."""
        return x @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)


class Mlp(eqx.Module):
    """Two linear layers with an activation between them.

    With a gate, which is a third layer, it is the gate that is activated, and the hidden layer is
    multiplied by it (SwiGLU, if the activation is `silu`).
    """

    hidden: Linear
    out: Linear
    gate: Linear | None
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        mlp: int,
        activation: Activation,
        *,
        gated: bool = False,
        key: PRNGKeyArray,
    ):
        hidden_key, out_key = jr.split(key)
        self.hidden = Linear(dim, mlp, key=hidden_key)
        self.out = Linear(mlp, dim, key=out_key)
        self.gate = Linear(dim, mlp, key=jr.fold_in(key, 2)) if gated else None
        self.activation = activation

    def __call__(
        self, x: Float[Array, "*batch dim"], *, recompute: bool = False
    ) -> Float[Array, "*batch dim"]:
        """Apply to every token.

        Args:
            x: the tokens.
            recompute: keep only the activation's input for the backward pass.
        """
        activate: Callable[..., Any] = _activate if recompute else _activate_plainly
        hidden = self.hidden(x)
        if self.gate is None:
            return self.out(activate(hidden, self.activation))
        gate: Array = activate(self.gate(x), self.activation)
        return self.out(gate * hidden)


def _activate_plainly(x: Array, activation: Activation) -> Array:
    return _ACTIVATIONS[activation](x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _activate(x: Array, activation: Activation) -> Array:
    return _activate_plainly(x, activation)


def _activate_forward(x: Array, activation: Activation) -> tuple[Array, Array]:
    return _activate(x, activation), x


def _activate_backward(activation: Activation, x: Array, grad: Array) -> tuple[Array]:
    # The barrier keeps the forward activation apart, so that XLA can fuse it into the matrix
    # product in front of it: it does not where other code uses an intermediate value.
    x = jax.lax.optimization_barrier(x)
    return jax.vjp(_ACTIVATIONS[activation], x)[1](grad)


_activate.defvjp(_activate_forward, _activate_backward)


def xavier(
    key: PRNGKeyArray, shape: tuple[int, ...], inputs: int, outputs: int
) -> Float32[Array, "..."]:
    """Xavier-uniform values of a shape, for a layer with so many inputs and outputs."""
    limit = math.sqrt(6 / (inputs + outputs))
    return jr.uniform(key, shape, minval=-limit, maxval=limit)
