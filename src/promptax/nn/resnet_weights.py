"""Pre-trained ResNets: files with the names of timm and torchvision, to and from a `ResNet`."""

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
from promptax.nn.weights.leaves import check_leaves

FOREIGN = "fc."
"""Leaves of the checkpoint's own classifier, which a continual learner has no use for."""

_COUNTER = ".num_batches_tracked"
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")


@dataclass(frozen=True)
class ResNetWeights:
    """A checkpoint as it was read: which file, which bytes, and what of it is not used."""

    name: str
    sha256: str
    leaves: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What a result says of its weights."""
        return {"name": self.name, "sha256": self.sha256, "dropped": list(self.dropped)}

    def config(self, image: int | None = None) -> ResNetConfig:
        """The shape of the ResNet that these weights are of, for images of another size than
        224 (32 with a 3x3 stem) if given.

        Raises `UserError` where the stem, which tells the width, is missing or no image's.
        """
        if "conv1.weight" not in self.leaves:
            raise UserError(f"{self.name}: the leaf 'conv1.weight' is missing: is this a ResNet?")
        stem = self.leaves["conv1.weight"].shape
        if len(stem) != 4 or stem[1:] not in ((3, 3, 3), (3, 7, 7)):
            raise UserError(
                f"{self.name}: 'conv1.weight' should have shape (width, 3, 7, 7) or "
                f"(width, 3, 3, 3), but has {stem}."
            )
        small = stem[2] == 3
        block = "bottleneck" if "layer1.0.conv3.weight" in self.leaves else "basic"
        size = (32 if small else 224) if image is None else image
        return ResNetConfig(block, self._depths(), stem[0], small, size)

    def _depths(self) -> tuple[int, ...]:
        """Counted rather than taken from the largest number, so that gaps show as missing."""
        matches = (_BLOCK.match(name) for name in self.leaves)
        blocks = {(int(match[1]), int(match[2])) for match in matches if match}
        stages = range(1, 1 + max(1, len({stage for stage, _ in blocks})))
        return tuple(max(1, sum(stage == of for of, _ in blocks)) for stage in stages)

    def build(
        self,
        image: int | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        remat: bool = False,
    ) -> ResNet:
        """Build the ResNet.

        Raises `UserError` that names the leaf which is missing, unknown, misshaped or not
        finite, what was expected and what came.
        """
        config = self.config(image)
        make = lambda: ResNet(config, key=jr.key(0), dtype=dtype, remat=remat)
        skeleton = eqx.filter_eval_shape(make)
        expected = jax.eval_shape(resnet_leaves, skeleton)
        _check(self.name, {name: leaf.shape for name, leaf in expected.items()}, self.leaves)
        return resnet_from_leaves(skeleton, self.leaves)


def is_resnet(names: Iterable[str]) -> bool:
    """Whether the names are those of a ResNet, whole or not."""
    return any(_BLOCK.match(name) for name in names)


def resnet_weights(name: str, sha256: str, leaves: Mapping[str, np.ndarray]) -> ResNetWeights:
    """The weights in a mapping of leaf names, without the classifier and counters in it."""
    kept = {key: leaf for key, leaf in leaves.items() if not key.endswith(_COUNTER)}
    dropped = tuple(sorted(key for key in kept if key.startswith(FOREIGN)))
    used = {key: leaf for key, leaf in kept.items() if key not in dropped}
    return ResNetWeights(name, sha256, used, dropped)


def read_resnet(path: str | Path) -> ResNetWeights:
    """Read a `.safetensors` or `.npz` file.

    Raises `UserError` if the file is missing, truncated or of another kind.
    """
    path = Path(path)
    require_file(path, "weights", "give a .safetensors or .npz file")
    try:
        leaves = _read(path)
    except UserError:
        raise
    except Exception as error:
        # Both libraries let through whatever their parsers raise on a damaged file.
        raise UserError(
            f"weights '{path}' cannot be read as {path.suffix} ({error}): truncated?"
        ) from None
    return resnet_weights(path.name, sha256_of(path), leaves)


def load_resnet(
    path: str | Path,
    image: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
) -> ResNet:
    """A pre-trained `ResNet` from a `.safetensors` or `.npz` file.

    Raises `UserError` as `read_resnet` and `ResNetWeights.build` do.
    """
    return read_resnet(path).build(image, dtype=dtype, remat=remat)


def resnet_leaves(resnet: ResNet) -> dict[str, Array]:
    """The parameters and statistics of a ResNet under the names, and in the shapes, of the files
    (kernels are `[outputs, inputs, height, width]` there)."""
    return {
        name: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        for names, convolution in _convolutions(resnet)
        for name, leaf in zip(names, _leaves(convolution), strict=True)
    }


def resnet_from_leaves(like: ResNet, leaves: Mapping[str, Array | np.ndarray]) -> ResNet:
    """The inverse of `resnet_leaves`: a ResNet of the shape of `like` with these parameters."""
    names = [name for names, _ in _convolutions(like) for name in names]
    values = [
        leaves[name].transpose(2, 3, 1, 0) if leaves[name].ndim == 4 else leaves[name]
        for name in names
    ]
    where = lambda resnet: [leaf for _, part in _convolutions(resnet) for leaf in _leaves(part)]
    return eqx.tree_at(where, like, [jnp.asarray(value, jnp.float32) for value in values])


def _convolutions(resnet: ResNet) -> Iterator[tuple[list[str], Convolution]]:
    """Every convolution with the names of its `_leaves`."""
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
    """Arrays, or the shapes of arrays."""
    norm = convolution.norm
    statistics = norm.statistics
    return [convolution.kernel, norm.scale, norm.bias, statistics.mean, statistics.variance]


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".npz":
        return read_npz(path, "weights")
    raise UserError(f"weights '{path}' should be a .safetensors or .npz file.")


def _check(file: str, expected: Mapping[str, tuple[int, ...]], leaves: Mapping[str, np.ndarray]):
    check_leaves(file, expected, leaves, "ResNet")
    for name in expected:
        if name.endswith("running_var") and (leaves[name] < 0).any():
            raise UserError(f"{file}: '{name}' is a variance, but holds values below 0.")
