"""Residual networks (He et al., 2016) in the version of timm and torchvision ("v1.5").

The stride of a bottleneck is in its 3x3 convolution there, not in the 1x1 convolution before it.
"""

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
from promptax.core.fields import check_fields
from promptax.nn.backbone import AbstractBackbone, Statistics

_BOTTLENECK_EXPANSION = 4
"""Output channels of a bottleneck for each channel inside it."""
_NORM_EPS = 1e-5
"""Added to the variance by every batch norm."""
_CHANNELS = 3
"""Channels of an image."""


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a ResNet."""

    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions; or a 1x1, a 3x3 and a 1x1 convolution, the last four times as wide."""
    depths: tuple[int, ...]
    """Number of blocks in each stage. From the second on, a stage halves the side of its input and
    doubles the width."""
    width: int = 64
    """Channels of the stem, and of the 3x3 convolutions of the first stage."""
    small_stem: bool = False
    """Whether the stem is a 3x3 convolution that keeps the size of the image, for 32x32 images;
    otherwise it is a 7x7 convolution with stride 2, and max-pooling."""
    image: int = 224
    """Side of a square input image, in pixels."""

    def __post_init__(self):
        check_fields(self)
        if not self.depths or min(self.depths) < 1:
            raise UserError(f"ResNet depths are {self.depths}; expected at least 1 for each stage.")
        if self.width < 1:
            raise UserError(f"ResNet width is {self.width}; expected at least 1.")
        if self.image < 1:
            raise UserError(f"ResNet image size is {self.image}; expected at least 1.")

    @property
    def expansion(self) -> int:
        """Output channels of a block for each channel inside it."""
        return _BOTTLENECK_EXPANSION if self.block == "bottleneck" else 1

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.width * 2 ** (len(self.depths) - 1) * self.expansion


_18 = ResNetConfig(block="basic", depths=(2, 2, 2, 2))
_50 = ResNetConfig(block="bottleneck", depths=(3, 4, 6, 3))
RESNETS: Mapping[str, ResNetConfig] = {
    "resnet-18": _18,
    "resnet-50": _50,
    "resnet-18-small": replace(_18, small_stem=True, image=32),
    "resnet-50-small": replace(_50, small_stem=True, image=32),
}
"""The published sizes, and the same sizes with the stem for 32x32 images."""


def resnet_config(size: str, image: int | None = None) -> ResNetConfig:
    """The config of a size by its name, for images of `image` pixels a side if that is given.

    Raises `UserError` if there is no such size.
    """
    if size not in RESNETS:
        raise unknown("ResNet size", size, RESNETS)
    config = RESNETS[size]
    return config if image is None else replace(config, image=image)


class BatchNorm(eqx.Module):
    """Batch normalisation with fixed statistics, in training as in evaluation.

    Only scale and bias are trained. Moving statistics would follow the tasks and change the
    features of old ones without any gradient. Fixed ones also keep the state of a run simple: a
    training step changes nothing but parameters.
    """

    scale: Float32[Array, " dim"]
    bias: Float32[Array, " dim"]
    statistics: Statistics

    def __init__(self, dim: int, scale: float = 1.0):
        """A norm that multiplies `dim` channels by `scale`, with statistics of mean 0 and variance
        1."""
        self.scale = jnp.full(dim, scale, jnp.float32)
        self.bias = jnp.zeros(dim)
        self.statistics = Statistics(mean=jnp.zeros(dim), variance=jnp.ones(dim))

    def __call__(self, x: Float[Array, "batch height width dim"]) -> Float[Array, "..."]:
        """Normalise the last axis; computed in float32, returned in the type of `x`."""
        factor = self.scale * jax.lax.rsqrt(self.statistics.variance + _NORM_EPS)
        y = (x.astype(jnp.float32) - self.statistics.mean) * factor + self.bias
        return y.astype(x.dtype)


class Convolution(eqx.Module):
    """A square convolution without bias, and the batch norm after it."""

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
        """A random kernel and an untrained batch norm.

        Args:
            side: side of the kernel, in pixels.
            inputs, outputs: numbers of channels.
            stride: step between the places of the kernel, in pixels.
            scale: initial scale of the batch norm.
            key: key of the kernel, which is normal of variance 2 / (side² outputs) (He et al.,
                2015, eq. 14).
        """
        deviation = math.sqrt(2 / (side**2 * outputs))
        self.kernel = deviation * jr.normal(key, (side, side, inputs, outputs))
        self.norm = BatchNorm(outputs, scale)
        self.stride = stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch new_height new_width outputs"]:
        """Convolve with zeros of half a kernel around the image, and normalise."""
        half = self.kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            # PyTorch pads both ends alike; "SAME" with a stride of 2 may pad right and bottom only.
            padding=((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return self.norm(x)


class Block(eqx.Module):
    """A residual block: convolutions with a shortcut around them."""

    branch: tuple[Convolution, ...]
    shortcut: Convolution | None
    """A 1x1 projection if the block changes the shape; None stands for the identity."""

    def __init__(
        self, config: ResNetConfig, inputs: int, width: int, stride: int, *, key: PRNGKeyArray
    ):
        """A block of random weights.

        Args:
            config: config of the whole ResNet.
            inputs: channels of the input.
            width: channels of the 3x3 convolutions.
            stride: stride of the first 3x3 convolution and of the shortcut.
            key: key of the weights.
        """
        outputs = width * config.expansion
        # Side, output channels and stride of each convolution of the branch.
        if config.block == "bottleneck":
            plan = [(1, width, 1), (3, width, stride), (1, outputs, 1)]
        else:
            plan = [(3, width, stride), (3, outputs, 1)]
        shortcut_key, *keys = jr.split(key, 1 + len(plan))
        # With fixed statistics nothing normalises the sum of branch and shortcut, whose variance
        # would double in every block. A small scale at the end of the branch prevents that: see De
        # and Smith, "Batch Normalization Biases Residual Blocks ...", 2020.
        last_scale = 1 / math.sqrt(sum(config.depths))
        branch = []
        channels = inputs
        for n, (side, channels_after, step) in enumerate(plan):
            branch.append(
                Convolution(
                    side,
                    channels,
                    channels_after,
                    stride=step,
                    scale=last_scale if n == len(plan) - 1 else 1.0,
                    key=keys[n],
                )
            )
            channels = channels_after
        self.branch = tuple(branch)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = Convolution(1, inputs, outputs, stride=stride, key=shortcut_key)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch new_height new_width outputs"]:
        """The rectified sum of branch and shortcut."""
        y = x
        for convolution in self.branch[:-1]:
            y = jax.nn.relu(convolution(y))
        y = self.branch[-1](y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(AbstractBackbone):
    """A residual network: a stem, stages of blocks, and the mean over all positions; no head."""

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
        """A ResNet of random weights.

        Args:
            config: the shape.
            key: key of the weights.
            dtype: the type of the convolutions. Parameters, normalisation and the final mean stay
                in float32.
            remat: recompute each block in the backward pass, to save memory.
        """
        stem_key, stages_key = jr.split(key)
        if config.small_stem:
            self.stem = Convolution(3, _CHANNELS, config.width, key=stem_key)
        else:
            self.stem = Convolution(7, _CHANNELS, config.width, stride=2, key=stem_key)
        self.stages = tuple(_make_stages(config, stages_key))
        self.config = config
        self.dtype = dtype
        self.remat = remat

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
        """The mean of the last stage over all positions.

        Raises `UserError` if the images do not have the size of the model.
        """
        expected = (self.image, self.image, _CHANNELS)
        if images.shape[1:] != expected:
            raise UserError(f"this ResNet takes images of {expected}, got {images.shape[1:]}.")
        x = jax.nn.relu(self.stem(images.astype(self.dtype)))
        if not self.config.small_stem:
            x = _max_pool(x)
        run = lambda block, x: block(x)
        if self.remat:
            run = jax.checkpoint(run)
        for block in itertools.chain(*self.stages):
            x = run(block, x)
        return x.mean((1, 2), dtype=jnp.float32)


def _make_stages(config: ResNetConfig, key: PRNGKeyArray) -> Iterator[tuple[Block, ...]]:
    """The blocks of each stage, from random weights."""
    keys = iter(jr.split(key, sum(config.depths)))
    inputs = config.width
    for stage, depth in enumerate(config.depths):
        width = config.width * 2**stage
        outputs = width * config.expansion
        blocks = []
        for number in range(depth):
            # The stem has reduced the size already, so the first stage does not.
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(Block(config, inputs, width, stride, key=next(keys)))
            inputs = outputs
        yield tuple(blocks)


def _max_pool(x: Float[Array, "batch height width channel"]) -> Float[Array, "..."]:
    """The maximum over 3x3 windows with stride 2; pixels outside the image do not count."""
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )
