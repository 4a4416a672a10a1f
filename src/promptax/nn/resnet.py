"""Residual networks (He et al., 2016), as timm and torchvision have them ("v1.5"): the stride of a
bottleneck is in its 3x3 convolution, not in the 1x1 before it."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.errors import UserError, unknown
from promptax.nn.backbone import AbstractBackbone, Statistics


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a ResNet."""

    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, the last four times as wide."""
    depths: tuple[int, ...]
    """Number of blocks of each stage; stages halve the side and double the width."""
    width: int = 64
    """Channels of the stem and, without the last convolution's factor, of the first stage."""
    small_stem: bool = False
    """A 3x3 stem that keeps the size of the image, for 32x32 images; else 7x7 with stride 2
    and max-pooling."""
    image: int = 224
    """Side of a square input image, in pixels."""

    def __post_init__(self):
        if not self.depths or min(self.depths) < 1:
            raise UserError(f"ResNet depths are {self.depths}; expected at least 1 for each stage.")
        for name, value in (("width", self.width), ("image size", self.image)):
            if value < 1:
                raise UserError(f"ResNet {name} is {value}; expected at least 1.")

    @property
    def expansion(self) -> int:
        """Output channels of a block for each channel inside it."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.width * 2 ** (len(self.depths) - 1) * self.expansion


_18 = ResNetConfig("basic", (2, 2, 2, 2))
_50 = ResNetConfig("bottleneck", (3, 4, 6, 3))
RESNETS: Mapping[str, ResNetConfig] = {
    "resnet-18": _18,
    "resnet-50": _50,
    "resnet-18-small": replace(_18, small_stem=True, image=32),
    "resnet-50-small": replace(_50, small_stem=True, image=32),
}
"""The published sizes, and the same with the stem for 32x32 images."""


def resnet_config(size: str, image: int | None = None) -> ResNetConfig:
    """The config of a named size, for another image size where one is given.

    Raises `UserError` for a size that does not exist.
    """
    if size not in RESNETS:
        raise unknown("ResNet size", size, RESNETS)
    config = RESNETS[size]
    return config if image is None else replace(config, image=image)


class BatchNorm(eqx.Module):
    """Batch normalisation (eps 1e-5) in its inference form, in training too.

    The statistics are fixed, and only scale and bias are trained. Statistics that follow the
    batches would be dragged along by a sequence of tasks, so that features of old tasks change
    without any gradient; and what a step changes is what gradients change: the state of a run
    holds no more than that.
    """

    scale: Float32[Array, " dim"]
    bias: Float32[Array, " dim"]
    statistics: Statistics

    def __init__(self, dim: int, scale: float = 1.0):
        """The identity, times `scale`."""
        self.scale, self.bias = jnp.full(dim, scale, jnp.float32), jnp.zeros(dim)
        self.statistics = Statistics(jnp.zeros(dim), jnp.ones(dim))

    def __call__(self, x: Float[Array, "batch height width dim"]) -> Float[Array, "..."]:
        """Normalise the last axis, in float32."""
        factor = self.scale * jax.lax.rsqrt(self.statistics.variance + 1e-5)
        y = (x.astype(jnp.float32) - self.statistics.mean) * factor + self.bias
        return y.astype(x.dtype)


class Convolution(eqx.Module):
    """A convolution without bias, and the batch norm after it."""

    kernel: Float32[Array, "side side inputs outputs"]
    norm: BatchNorm
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        side: int,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """A normal kernel of variance 2 / (side² outputs) (He et al., 2015, eq. 14); `scale` is
        that of the batch norm."""
        deviation = math.sqrt(2 / (side**2 * outputs))
        self.kernel = deviation * jr.normal(key, (side, side, inputs, outputs))
        self.norm, self.stride = BatchNorm(outputs, scale), stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch new_height new_width outputs"]:
        """Convolve, half a kernel of zeros on every side, and normalise."""
        half = self.kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            (self.stride, self.stride),
            # Not "SAME", which with a stride of 2 pads right and bottom only.
            ((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return self.norm(x)


class Block(eqx.Module):
    """Convolutions with a shortcut around them."""

    branch: tuple[Convolution, ...]
    shortcut: Convolution | None
    """A 1x1 projection where the shape changes; None: the input itself."""

    def __init__(
        self, config: ResNetConfig, inputs: int, width: int, stride: int, *, key: PRNGKeyArray
    ):
        outputs = width * config.expansion
        plan = [(3, width, stride), (3, outputs, 1)]
        if config.block == "bottleneck":
            plan = [(1, width, 1), (3, width, stride), (1, outputs, 1)]
        # With fixed statistics nothing holds back the sum, whose variance would double in every
        # block: see De and Smith, "Batch Normalization Biases Residual Blocks ...", 2020.
        scales = [1.0] * (len(plan) - 1) + [1 / math.sqrt(sum(config.depths))]
        shortcut, *keys = jr.split(key, 1 + len(plan))
        befores = (inputs, *(after for _, after, _ in plan))
        self.branch = tuple(
            Convolution(side, before, after, stride=step, scale=scale, key=key)
            for (side, after, step), before, scale, key in zip(
                plan, befores[:-1], scales, keys, strict=True
            )
        )
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = Convolution(1, inputs, outputs, stride=stride, key=shortcut)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch new_height new_width outputs"]:
        """The rectified sum of both ways."""
        y = x
        for convolution in self.branch[:-1]:
            y = jax.nn.relu(convolution(y))
        y = self.branch[-1](y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(AbstractBackbone):
    """A residual network: stem, stages of blocks, mean over positions; no head.

    Parameters are float32; `dtype` is the type that it convolves in (normalisation and the
    last mean stay in float32).
    """

    stem: Convolution
    stages: tuple[tuple[Block, ...], ...]
    config: ResNetConfig = eqx.field(static=True)
    dtype: Literal["float32", "bfloat16"] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        config: ResNetConfig,
        *,
        key: PRNGKeyArray,
        dtype: Literal["float32", "bfloat16"] = "float32",
        remat: bool = False,
    ):
        """Random weights and statistics of mean 0 and variance 1; the batch norm that ends a
        branch starts at one over the root of the number of blocks. `remat` recomputes each
        block in the backward pass."""
        stem, blocks = jr.split(key)
        side, stride = (3, 1) if config.small_stem else (7, 2)
        self.stem = Convolution(side, 3, config.width, stride=stride, key=stem)
        self.stages = tuple(_make_stages(config, blocks))
        self.config, self.dtype, self.remat = config, dtype, remat

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.config.dim

    @property
    def image(self) -> int:
        """Side of the square images that the model takes, in pixels."""
        return self.config.image

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float32[Array, "batch dim"]:
        """The mean over all positions of the last stage.

        Raises `UserError` if the images do not have the size of the model.
        """
        expected = (self.image, self.image, 3)
        if images.shape[1:] != expected:
            raise UserError(f"this ResNet takes images of {expected}, got {images.shape[1:]}.")
        x = jax.nn.relu(self.stem(images.astype(self.dtype)))
        x = x if self.config.small_stem else _max_pool(x)
        run = lambda block, x: block(x)
        run = jax.checkpoint(run) if self.remat else run
        for block in itertools.chain(*self.stages):
            x = run(block, x)
        return x.mean((1, 2), dtype=jnp.float32)


def _make_stages(config: ResNetConfig, key: PRNGKeyArray) -> Iterator[tuple[Block, ...]]:
    keys = iter(jr.split(key, sum(config.depths)))
    inputs = config.width
    for stage, depth in enumerate(config.depths):
        width = config.width * 2**stage
        outputs = width * config.expansion
        first = Block(config, inputs, width, 2 if stage else 1, key=next(keys))
        rest = (Block(config, outputs, width, 1, key=next(keys)) for _ in range(depth - 1))
        yield (first, *rest)
        inputs = outputs


def _max_pool(x: Float[Array, "batch height width channel"]) -> Float[Array, "..."]:
    """3x3 with stride 2; what is outside the image does not count."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
