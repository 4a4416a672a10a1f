"""How a ViT's computation is arranged for a device.

The arrangement changes speed and memory, and results only by rounding. Every choice that depends
on the device is made here, by `plan`, while a function is traced; the model reads the `Plan`.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import get_abstract_mesh

from promptax.core.errors import UserError
from promptax.core.fields import check_fields
from promptax.core.sharding import is_split
from promptax.core.types import BatchSize
from promptax.nn.sizes import ViTConfig

LOGGER = logging.getLogger(__name__)

Remat = Literal["all", "projections", "nothing"]
"""Which activations of a block the backward pass computes again."""
POLICIES: tuple[Remat, ...] = ("nothing", "projections", "all")
"""From the fastest on a GPU to the one that takes the least memory."""
Kernel = Literal["plain", "cudnn"]
"""Attention as plain matrix products, or cuDNN's fused kernel, which never stores the scores."""

CUDNN_MULTIPLE = 8
"""Sequences are padded to a multiple of this for cuDNN, which refuses odd lengths."""
CUDNN_WIDEST_HEAD = 128
"""The widest head that cuDNN's fused attention takes on every supported GPU."""
_AMPERE = 8.0
SHARE_OF_MEMORY = 0.7
"""The share of the device's memory that activations and parameters together may take by our
estimate. The rest is for images, temporary buffers and the estimate's error."""
_BYTES_OF_TRAINED_PARAMETER = 16
"""Value, gradient and two Adam moments, each in float32."""


@dataclass(frozen=True)
class Device:
    """What `plan` needs to know of a device."""

    backend: str
    """JAX's name for it: cpu, gpu or tpu."""
    capability: float | None = None
    """Compute capability of an NVIDIA GPU; None for anything else."""
    memory: int | None = None
    """Bytes that JAX may use; None if unknown."""

    @classmethod
    def at_hand(cls) -> "Device":
        """The first device of JAX's default backend."""
        device = jax.local_devices()[0]
        is_nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version
        capability = float(device.compute_capability) if is_nvidia else None
        memory = (device.memory_stats() or {}).get("bytes_limit")
        return cls(jax.default_backend(), capability, memory)


_TARGET: ContextVar[Device | None] = ContextVar("target", default=None)


@contextmanager
def compiling_for(device: Device) -> Iterator[None]:
    """While the body runs, plan for a device that this machine need not have.

    This changes what is traced in the body. A compiled function that was traced before, for the
    same shapes, is not traced again, and keeps the plan that it has.
    """
    token = _TARGET.set(device)
    try:
        yield
    finally:
        _TARGET.reset(token)


def _device() -> Device:
    return _TARGET.get() or Device.at_hand()


@dataclass(frozen=True)
class Execution:
    """How a ViT should be computed; `auto` leaves a choice to `plan`."""

    attention: Literal["auto", "plain", "cudnn"] = "auto"
    """Plain matrix products, or cuDNN's fused attention (NVIDIA, bfloat16); auto: cuDNN wherever
    it can run."""
    blocks: Literal["auto", "scan", "unroll"] = "auto"
    """Loop over the blocks (`scan`: half the compile time), or lay them out one after another
    (`unroll`: no copies into the loop's buffers); auto: unroll on a GPU, scan elsewhere."""
    remat: Literal["auto", "all", "projections", "nothing"] = "auto"
    """Which activations the backward pass computes again to save memory: `all` keeps only the
    input of each block, `projections` keeps only the outputs of matrix products with weights,
    `nothing` keeps whatever is needed. auto: on a GPU the first of nothing, projections and all
    that fits its memory, projections elsewhere."""
    elementwise: Literal["auto", "saved", "recomputed"] = "auto"
    """For the backward pass of LayerNorm and GELU: keep the intermediate values that automatic
    differentiation asks for, or keep the input and compute the rest again; auto: recomputed on a
    GPU, whose steps wait for memory, saved elsewhere."""

    def __post_init__(self):
        check_fields(self)


AUTO = Execution()
"""Everything as suits the device."""


@dataclass(frozen=True)
class Plan:
    """How a ViT is computed on the device at hand."""

    attention: Kernel = "plain"
    blocks: Literal["scan", "unroll"] = "scan"
    remat: Remat = "projections"
    elementwise: Literal["saved", "recomputed"] = "saved"

    @property
    def multiple(self) -> int:
        """The number of tokens is padded to a multiple of this."""
        return CUDNN_MULTIPLE if self.attention == "cudnn" else 1


PLAIN = Plan()
"""The computation of a CPU, which every device can run."""


def plan(asked: Execution, config: ViTConfig, dtype: str, *, batch: BatchSize, tokens: int) -> Plan:
    """Choose everything that was left to `auto`, for JAX's default backend (see `compiling_for`).

    Args:
        asked: the choices of the user.
        config: the shape of the ViT.
        dtype: the type that it computes in.
        batch: images in the batch, over all devices; a symbol only if `remat` is given.
        tokens: length of the sequence.

    Raises:
        UserError: cuDNN's attention was asked for, but cannot run here.
    """
    gpu = _device().backend == "gpu"
    kernel = _kernel(asked, config, dtype)
    remat = asked.remat
    if remat == "auto":
        # Elsewhere than on a GPU, fetching activations from memory takes longer than computing
        # them again: on a CPU "projections" is the fastest. TPUs have not been measured.
        remat = _least_remat(config, dtype, kernel, batch, tokens) if gpu else "projections"
    blocks = "unroll" if unrolls(asked) else "scan"
    elementwise = asked.elementwise
    if elementwise == "auto":
        elementwise = "recomputed" if gpu else "saved"
    return Plan(kernel, blocks, remat, elementwise)


def unrolls(asked: Execution) -> bool:
    """Whether the blocks are laid out one after another rather than looped over."""
    if asked.blocks == "auto":
        return _device().backend == "gpu"
    return asked.blocks == "unroll"


def _kernel(asked: Execution, config: ViTConfig, dtype: str) -> Kernel:
    if asked.attention == "plain":
        return "plain"
    refusal = cudnn_refusal(dtype, config.dim // config.heads)
    if refusal is None:
        return "cudnn"
    if asked.attention == "cudnn":
        raise UserError(
            f"Execution(attention=cudnn): {refusal}, or choose Execution(attention=plain)."
        )
    if _device().backend == "gpu":
        _log_once(f"attention without cuDNN's fused kernel: {refusal}.")
    return "plain"


def cudnn_refusal(dtype: str, head_dim: int) -> str | None:
    """Why cuDNN's fused attention cannot run here, and what would help; None if it can.

    Args:
        dtype: the type of queries, keys and values.
        head_dim: width of an attention head.
    """
    device = _device()
    capability = device.capability
    if capability is None:
        return f"it needs an NVIDIA GPU, but JAX's backend is '{device.backend}': run on one"
    if capability < _AMPERE:
        return f"it needs compute capability {_AMPERE}, but this GPU has {capability}: use a newer"
    if dtype not in ("bfloat16", "float16"):
        return (
            f"it needs half precision, but the ViT computes in {dtype}: "
            "use Backbone(dtype=bfloat16)"
        )
    if head_dim > CUDNN_WIDEST_HEAD or head_dim % CUDNN_MULTIPLE:
        return (
            f"it needs heads of a width that is a multiple of {CUDNN_MULTIPLE} and at most "
            f"{CUDNN_WIDEST_HEAD}, but these are {head_dim} wide: use another ViT"
        )
    return None


_TRAINED: ContextVar[bool] = ContextVar("trained", default=True)


@contextmanager
def training_blocks(trained: bool) -> Iterator[None]:
    """Say whether the blocks themselves are trained, while the body traces a gradient.

    Args:
        trained: False if they only pass gradients on to prompts, so that the inputs of their
            matrix products are not needed in the backward pass. True, the default, is safe.
    """
    token = _TRAINED.set(trained)
    try:
        yield
    finally:
        _TRAINED.reset(token)


def kept_bytes(
    config: ViTConfig, dtype: str, remat: Remat, *, trained: bool = True, scores: int = 0
) -> int:
    """Estimate how much the blocks keep of one token for the backward pass.

    In units of the width, a block keeps its input; with `projections` also queries, keys, values,
    the output of the attention and the hidden layer; with `nothing` also the attention's result
    before its last projection, and what trained kernels need: the results of both LayerNorms and
    the activated hidden layer. With `all`, no more than two blocks hold all of that at a time.

    For ViT-B/16, L/16 and H/14 in bfloat16, it is within 8 % of what XLA reports for an NVIDIA GPU.
    With `Execution(elementwise="saved")`, up to 36 % more is kept.

    Args:
        config: Sizes of the ViT.
        dtype: The type that the blocks compute in.
        remat: The recomputation policy.
        trained: Whether the kernels of the blocks are trained.
        scores: How many attention weights of a token are kept; 0 with fused attention.

    Returns:
        A number of bytes.
    """
    size = jnp.dtype(dtype).itemsize
    # A gated MLP has two hidden layers, and their product.
    hidden = config.mlp * (1 + config.gated_mlp)
    projections = (5 * config.dim + hidden) * size
    nothing = projections + config.dim * size
    if config.gated_mlp:
        nothing += config.mlp * size
    if trained:
        nothing += (2 * config.dim + hidden) * size
    # The weights are in float32, and cast where the blocks compute in half precision.
    nothing += scores * (4 if size == 4 else 4 + size)
    if remat == "nothing":
        return config.depth * nothing
    if remat == "projections":
        return config.depth * projections
    return config.depth * config.dim * size + 2 * nothing


def _least_remat(config: ViTConfig, dtype: str, kernel: Kernel, batch: int, tokens: int) -> Remat:
    """The first of nothing, projections and all whose activations fit the GPU."""
    mesh = get_abstract_mesh()
    if is_split(mesh):
        # Keeping everything would keep the gathered parameters of all blocks.
        return "projections"
    memory = _device().memory
    if memory is None:
        return "nothing"
    matrices = 2 + config.gated_mlp
    parameters = config.depth * config.dim * (4 * config.dim + matrices * config.mlp)
    trained = _TRAINED.get()
    of_parameters = parameters * (_BYTES_OF_TRAINED_PARAMETER if trained else 4)
    free = SHARE_OF_MEMORY * memory - of_parameters
    scores = config.heads * tokens if kernel == "plain" else 0
    # An empty mesh has no devices: the function runs on one.
    per_device = batch * tokens / max(1, mesh.size)
    for policy in POLICIES:
        kept = kept_bytes(config, dtype, policy, trained=trained, scores=scores)
        if per_device * kept <= free:
            return policy
    return POLICIES[-1]


@functools.cache
def _log_once(message: str) -> None:
    LOGGER.info(message)
