"""Floating-point operations of a prediction, counted in its program rather than measured."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from promptax.methods.base import AbstractMethod, no_query


def inference_flops(method: AbstractMethod, model: PyTree, state: PyTree, side: int) -> int:
    """Count the operations by which one more image makes `query` and `predict` dearer.

    Work that a batch shares, such as the sum of a kernel and its LoRA, is not counted.

    Args:
        method: The method.
        model: Its model, of arrays or of shapes alone.
        state: Its state, of arrays or of shapes alone.
        side: Height and width of the image.
    """

    def predict(model: PyTree, state: PyTree, images: Array) -> Array:
        query = no_query(images) if method.query is None else method.query(model, images)
        return method.predict(model, state, images, query).logits

    def flops_of(batch: int) -> int:
        images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
        return count_flops(predict, model, state, images)

    return flops_of(2) - flops_of(1)


def count_flops(function: Callable, *args: Any) -> int:
    """Operations of the matrix products and convolutions of a function: two for each product of
    two numbers, of which one is the addition. All else is left out, as is usual.

    What a scan repeats counts as often as it does, unlike in the compiler's own count, and of
    branches the dearest counts.
    """
    inputs, fixed = eqx.partition(args, lambda leaf: hasattr(leaf, "shape"))
    closed = jax.make_jaxpr(lambda inputs: function(*eqx.combine(inputs, fixed)))(inputs)
    return _count(closed.jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_cost(equation) for equation in jaxpr.eqns)


def _cost(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, outputs = equation.invars[1], params["dimension_numbers"].rhs_spec[0]
        each = _size(kernel) // kernel.aval.shape[outputs]
        return 2 * _size(equation.outvars[0]) * each
    inner = [_count(part) for part in _programs(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _programs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
