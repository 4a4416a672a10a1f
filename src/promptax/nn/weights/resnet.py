"""Weights of a ResNet: files with the names of timm and torchvision, to and from a `ResNet`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import safetensors.numpy
from jaxtyping import Array

from promptax.core.errors import UserError
from promptax.core.files import read_npz, require_file, sha256_of
from promptax.nn.resnet import Convolution, ResNet, ResNetConfig
from promptax.nn.weights.check import check_leaves

DROPPED = "fc."
"""Prefix of the classifier of the checkpoint, which is not used."""

_COUNTER = ".num_batches_tracked"
"""PyTorch counts batches in every batch norm; only training with moving statistics needs it."""
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
"""The number of the stage, from 1, and of the block in it, from 0."""
_SMALL_STEM = (3, 3, 3)
_LARGE_STEM = (3, 7, 7)
"""Inputs, height and width of the kernel of the stem."""
_SMALL_IMAGE = 32
_LARGE_IMAGE = 224
"""Image sizes, in pixels, that the two stems are made for."""


@dataclass(frozen=True)
class ResNetWeights:
    """Weights of a ResNet as they were read; `build` makes the ResNet."""

    name: str
    """The name of the file, without its folder."""
    sha256: str
    leaves: Mapping[str, np.ndarray]
    """The parameters and statistics under the names of the file."""
    dropped: tuple[str, ...]
    """Arrays of the file that are not used: the classifier of the checkpoint."""

    def facts(self) -> dict[str, Any]:
        """The record of the weights in the results of a run; it can be stored as JSON."""
        return {"name": self.name, "sha256": self.sha256, "dropped": list(self.dropped)}

    def config(self, image: int | None = None) -> ResNetConfig:
        """The config of the ResNet, for images of `image` pixels a side; by default 224, or 32 with
        a 3x3 stem.

        Raises `UserError` if the stem, which determines the width, is missing or does not take
        images.
        """
        if "conv1.weight" not in self.leaves:
            raise UserError(f"{self.name}: the leaf 'conv1.weight' is missing: is this a ResNet?")
        stem = self.leaves["conv1.weight"].shape
        if len(stem) != 4 or stem[1:] not in (_SMALL_STEM, _LARGE_STEM):
            raise UserError(
                f"{self.name}: 'conv1.weight' should have shape (width, 3, 7, 7) or "
                f"(width, 3, 3, 3), but has {stem}."
            )
        small_stem = stem[1:] == _SMALL_STEM
        if image is None:
            image = _SMALL_IMAGE if small_stem else _LARGE_IMAGE
        return ResNetConfig(
            block="bottleneck" if "layer1.0.conv3.weight" in self.leaves else "basic",
            depths=self._depths(),
            width=stem[0],
            small_stem=small_stem,
            image=image,
        )

    def _depths(self) -> tuple[int, ...]:
        """The number of blocks of each stage.

        Blocks are counted, and not taken from the largest number, so that a gap shows as a missing
        leaf.
        """
        matches = [_BLOCK.match(name) for name in self.leaves]
        blocks = {(int(match[1]), int(match[2])) for match in matches if match}
        num_stages = max(1, len({stage for stage, _ in blocks}))
        # At least one block, so that a stage without any has leaves that are missing.
        return tuple(
            max(1, sum(stage == number for stage, _ in blocks))
            for number in range(1, 1 + num_stages)
        )

    def build(
        self,
        image: int | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        remat: bool = False,
    ) -> ResNet:
        """Build the ResNet.

        Args:
            image: side of the square images that it takes, in pixels; see `config`.
            dtype: the type that it computes in; the parameters stay in float32.
            remat: recompute blocks in the backward pass, to save memory.

        Raises:
            UserError: a leaf is missing, unknown, misshaped or not finite. The message names it,
                what was expected and what came.
        """
        config = self.config(image)
        skeleton = eqx.filter_eval_shape(
            lambda: ResNet(config, key=jr.key(0), dtype=dtype, remat=remat)
        )
        expected = jax.eval_shape(resnet_leaves, skeleton)
        shapes = {name: leaf.shape for name, leaf in expected.items()}
        check_leaves(self.name, shapes, self.leaves, "ResNet")
        for name in shapes:
            if name.endswith("running_var") and (self.leaves[name] < 0).any():
                raise UserError(f"{self.name}: '{name}' is a variance, but holds values below 0.")
        return resnet_from_leaves(skeleton, self.leaves)


def is_resnet(names: Iterable[str]) -> bool:
    """Whether leaf names are those of a ResNet, even of one that lacks some leaves."""
    return any(_BLOCK.match(name) for name in names)


def resnet_weights(name: str, sha256: str, leaves: Mapping[str, np.ndarray]) -> ResNetWeights:
    """The weights in the leaves of a file, without its classifier and counters of batches."""
    kept = {key: leaf for key, leaf in leaves.items() if not key.endswith(_COUNTER)}
    dropped = tuple(sorted(key for key in kept if key.startswith(DROPPED)))
    used = {key: leaf for key, leaf in kept.items() if key not in dropped}
    return ResNetWeights(name, sha256, used, dropped)


def read_resnet(path: str | Path) -> ResNetWeights:
    """Read a `.safetensors` or `.npz` file.

    Raises `UserError` if the file is missing, truncated or of another kind.
    """
    path = Path(path)
    require_file(path, "weights", "give a .safetensors or .npz file")
    if path.suffix == ".npz":
        leaves = read_npz(path, "weights")
    elif path.suffix == ".safetensors":
        try:
            leaves = safetensors.numpy.load_file(path)
        except Exception as error:
            # The parser has an exception of its own, but types that NumPy lacks raise others.
            raise UserError(
                f"weights '{path}' cannot be read as .safetensors ({error}): is it cut off?"
            ) from None
    else:
        raise UserError(f"weights '{path}' should be a .safetensors or .npz file.")
    return resnet_weights(path.name, sha256_of(path), leaves)


def load_resnet(
    path: str | Path,
    image: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
) -> ResNet:
    """A pre-trained `ResNet` from a `.safetensors` or `.npz` file.

    Args:
        path: the file.
        image: side of the square images that it takes, in pixels; see `ResNetWeights.config`.
        dtype: the type that it computes in; the parameters stay in float32.
        remat: recompute blocks in the backward pass, to save memory.

    Raises:
        UserError: as `read_resnet` and `ResNetWeights.build` do.
    """
    return read_resnet(path).build(image, dtype=dtype, remat=remat)


def resnet_leaves(resnet: ResNet) -> dict[str, Array]:
    """The parameters and statistics of a ResNet under the names and in the shapes of the files.

    Kernels are `[outputs, inputs, height, width]` there.
    """
    return {
        name: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        for names, convolution in _convolutions(resnet)
        for name, leaf in zip(names, _leaves(convolution), strict=True)
    }


def resnet_from_leaves(like: ResNet, leaves: Mapping[str, Array | np.ndarray]) -> ResNet:
    """A ResNet of the shape of `like` with these leaves: the inverse of `resnet_leaves`."""

    def all_leaves(resnet: ResNet) -> list[Any]:
        return [leaf for _, part in _convolutions(resnet) for leaf in _leaves(part)]

    values = []
    for names, _ in _convolutions(like):
        for name in names:
            leaf = leaves[name]
            value = leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf
            values.append(jnp.asarray(value, jnp.float32))
    return eqx.tree_at(all_leaves, like, values)


def _convolutions(resnet: ResNet) -> Iterator[tuple[list[str], Convolution]]:
    """Every convolution of a ResNet, with the names of its `_leaves`."""
    yield _names("conv1", "bn1"), resnet.stem
    for stage, blocks in enumerate(resnet.stages, 1):
        for number, block in enumerate(blocks):
            prefix = f"layer{stage}.{number}."
            for n, convolution in enumerate(block.branch, 1):
                yield _names(f"{prefix}conv{n}", f"{prefix}bn{n}"), convolution
            if block.shortcut is not None:
                yield _names(f"{prefix}downsample.0", f"{prefix}downsample.1"), block.shortcut


def _names(kernel: str, norm: str) -> list[str]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return [f"{kernel}.weight", *(f"{norm}.{part}" for part in parts)]


def _leaves(convolution: Convolution) -> list[Any]:
    """The leaves in the order of `_names`; shapes instead of arrays in a skeleton."""
    norm = convolution.norm
    statistics = norm.statistics
    return [convolution.kernel, norm.scale, norm.bias, statistics.mean, statistics.variance]
