"""A naming scheme: a table from our leaves to the tensors of a PyTorch checkpoint."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from promptax.core.errors import UserError
from promptax.nn.vit import ViTConfig
from promptax.nn.weights.check import (
    Leaves,
    Shape,
    check_leaves,
    count_blocks,
    grid_of,
    shape_of,
)
from promptax.nn.weights.leaves import (
    BLOCK,
    HIDDEN,
    PATCH,
    PATCH_BIAS,
    POSITION,
    PRE_NORM,
    leaf_shapes,
)
from promptax.nn.weights.metadata import Metadata

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width, for the published sizes (Ti, S, B, L, H): in PyTorch's layout the
shapes do not show them."""


class Layout(NamedTuple):
    """How PyTorch lays out a leaf of ours."""

    shape: Callable[[Shape], Shape]
    """The shape of the tensor from the shape of our leaf."""
    read: Callable[[np.ndarray, Shape], np.ndarray]
    """Our leaf from the tensor and the shape of our leaf."""


def _linear(inputs: int) -> Layout:
    """`[outputs, inputs]` for a kernel of ours whose first `inputs` axes are inputs."""
    return Layout(
        shape=lambda shape: (math.prod(shape[inputs:]), math.prod(shape[:inputs])),
        read=lambda array, shape: array.T.reshape(shape),
    )


def _reshape(array: np.ndarray, shape: Shape) -> np.ndarray:
    return array.reshape(shape)


SAME = Layout(shape=lambda shape: shape, read=_reshape)
FLAT = Layout(shape=lambda shape: (math.prod(shape),), read=_reshape)
"""One axis: a vector, or the bias of all heads."""
TABLE = Layout(shape=lambda shape: shape[1:], read=_reshape)
"""An embedding table, without our batch axis."""
CONVOLUTION = Layout(
    shape=lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    read=lambda array, shape: array.transpose(2, 3, 1, 0),
)
LINEAR = _linear(1)
FROM_HEADS = _linear(2)
"""The output projection of attention, whose inputs are heads and their width."""


class Stored(NamedTuple):
    """The tensor of a checkpoint in which a leaf of ours is stored."""

    name: str
    layout: Layout
    third: int | None = None
    """The part of the leaf in a tensor that joins query (0), key (1) and value (2)."""

    def shape(self, leaf: Shape) -> Shape:
        """The shape of the whole tensor, from the shape of our leaf."""
        first, *rest = self.layout.shape(leaf)
        return (first if self.third is None else 3 * first, *rest)

    def read(self, tensors: Leaves, leaf: Shape) -> np.ndarray:
        """Our leaf in float32, from the tensors of a file and the shape of our leaf."""
        tensor = tensors[self.name]
        part = tensor if self.third is None else np.split(tensor, 3)[self.third]
        return np.ascontiguousarray(self.layout.read(part, leaf), np.float32)


def layer(ours: str, theirs: str, layout: Layout, third: int | None = None) -> dict[str, Stored]:
    """The entries for kernel and bias of a linear layer.

    Args:
        ours: the name of the layer in our leaves, with the final slash.
        theirs: the name of the layer in the checkpoint.
        layout: the layout of its kernel.
        third: its part in a layer that joins query, key and value; see `Stored`.
    """
    return {
        f"{ours}kernel": Stored(f"{theirs}.weight", layout, third),
        f"{ours}bias": Stored(f"{theirs}.bias", FLAT, third),
    }


def layer_norm(ours: str, theirs: str) -> dict[str, Stored]:
    """The entries for scale and bias of a LayerNorm."""
    return {
        f"{ours}scale": Stored(f"{theirs}.weight", FLAT),
        f"{ours}bias": Stored(f"{theirs}.bias", FLAT),
    }


@dataclass(frozen=True)
class Scheme:
    """How a library names the parameters of a ViT."""

    top: Mapping[str, Stored]
    """The leaves outside the blocks."""
    block: Mapping[str, Stored]
    """The leaves of a block, both sides without the prefix of the block."""
    block_prefix: str
    """How names in a block begin, with `{}` for the number of the block."""
    wrappers: tuple[str, ...]
    """Prefixes that models around the ViT put in front of its names, outermost first."""
    dropped: tuple[str, ...]
    """Prefixes of tensors that are not used, such as the classifier of the checkpoint."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Tensors of models that this library cannot compute, and what the models are."""
    fc_norm: Mapping[str, Stored] = field(default_factory=dict)
    """The final LayerNorm of models that apply it to the mean of the patches."""
    defaults: Metadata = Metadata(activation="gelu")
    """What is usual for files with these names."""

    def matches(self, tensors: Leaves) -> int:
        """The number of tensors that have a name of this scheme."""
        names = {_strip(name, self.wrappers) for name in tensors}
        stored = self._stored(count_blocks(names, self.block_prefix))
        known = {entry.name for entry in (*stored.values(), *self.fc_norm.values())}
        return len(names & known)

    def read(
        self, file: str, tensors: Leaves, hints: Metadata
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...], Metadata]:
        """Convert the tensors of a file to our leaves.

        Args:
            file: the name of the file, which begins each error.
            tensors: all tensors of the file by their names in the file.
            hints: metadata that goes before what the names show.

        Returns:
            The leaves, the names of the tensors that are dropped, and the metadata.

        Raises:
            UserError: a tensor is missing, unknown, misshaped, not of floats or not finite. The
                message names it, what was expected and what came.
        """
        tensors = self._unwrap(file, tensors)
        dropped = tuple(sorted(name for name in tensors if name.startswith(self.dropped)))
        kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
        stored, shown = self._present(kept)
        metadata = hints.filled_from(shown).filled_from_family().filled_from(self.defaults)
        shapes = leaf_shapes(self._config(file, kept, stored, metadata))
        expected = {entry.name: entry.shape(shapes[leaf]) for leaf, entry in stored.items()}
        check_leaves(file, expected, kept)
        leaves = {leaf: entry.read(kept, shapes[leaf]) for leaf, entry in stored.items()}
        # Our ViT always has a bias of the patches, which CLIP has not.
        for leaf in shapes.keys() - stored.keys():
            leaves[leaf] = np.zeros(shapes[leaf], np.float32)
        return leaves, dropped, metadata

    def _unwrap(self, file: str, tensors: Leaves) -> dict[str, np.ndarray]:
        plain = {_strip(name, self.wrappers): tensor for name, tensor in tensors.items()}
        if len(plain) < len(tensors):
            raise UserError(
                f"{file}: names differ by a prefix only ({', '.join(self.wrappers)}): it holds "
                "more than one model, keep one of them."
            )
        for name in self.refused.keys() & plain.keys():
            raise UserError(f"{file}: '{name}' is of {self.refused[name]}.")
        return plain

    def _stored(self, depth: int) -> dict[str, Stored]:
        """Where each leaf of a ViT of so many blocks is stored."""
        stored = dict(self.top)
        for n in range(depth):
            for leaf, entry in self.block.items():
                name = self.block_prefix.format(n) + entry.name
                stored[BLOCK.format(n) + leaf] = entry._replace(name=name)
        return stored

    def _present(self, kept: Leaves) -> tuple[dict[str, Stored], Metadata]:
        """Where each leaf of this kind of ViT is stored, and what the optional leaves show."""
        stored = self._stored(count_blocks(kept, self.block_prefix))
        shown = Metadata()
        if any(entry.name in kept for entry in self.fc_norm.values()):
            stored |= self.fc_norm
            shown = Metadata(pooling="mean")
        pre_norm = [leaf for leaf in stored if leaf.startswith(PRE_NORM)]
        if any(stored[leaf].name in kept for leaf in pre_norm):
            shown = Metadata(family="clip").filled_from(shown)
            # CLIP's patches have no bias, but a file may hold one all the same.
            absent = []
            if PATCH_BIAS in stored and stored[PATCH_BIAS].name not in kept:
                absent = [PATCH_BIAS]
        else:
            absent = pre_norm
        return {leaf: entry for leaf, entry in stored.items() if leaf not in absent}, shown

    def _config(
        self, file: str, kept: Leaves, stored: Mapping[str, Stored], metadata: Metadata
    ) -> ViTConfig:
        """The shape of the ViT, by the shapes of a few tensors."""

        def shape(leaf: str, rank: int) -> Shape:
            return shape_of(file, kept, stored[leaf].name, rank)

        dim, channels, patch, _ = shape(PATCH, rank=4)
        mlp, _ = shape(BLOCK.format(0) + HIDDEN + "kernel", rank=2)
        # The batch axis of a position embedding is not in every library's files.
        position_rank = len(stored[POSITION].shape((1, 1, 1)))
        tokens = shape(POSITION, position_rank)[-2]
        heads = metadata.heads or HEADS.get(dim)
        grid = grid_of(file, stored[POSITION].name, tokens)
        if heads is None:
            raise UserError(
                f"{file}: how many heads a ViT of width {dim} has is not in the file: put its "
                "config.json beside it, or convert it with --heads."
            )
        return ViTConfig(
            patch=patch,
            dim=dim,
            depth=count_blocks(kept, self.block_prefix),
            heads=heads,
            mlp=mlp,
            image=patch * grid,
            channels=channels,
            pre_norm=any(leaf.startswith(PRE_NORM) for leaf in stored),
        )


def _strip(name: str, wrappers: tuple[str, ...]) -> str:
    for prefix in wrappers:
        name = name.removeprefix(prefix)
    return name
