"""Naming schemes of PyTorch checkpoints: a table from our leaves to their tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from promptax.core.errors import UserError
from promptax.nn.vit import ViTConfig
from promptax.nn.weights.about import About
from promptax.nn.weights.leaves import (
    BLOCK,
    HIDDEN,
    PATCH,
    PATCH_BIAS,
    POSITION,
    PRE_NORM,
    Leaves,
    Shape,
    check_leaves,
    count_blocks,
    leaf_shapes,
    shape_of,
    square,
)

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width, for the published sizes (Ti, S, B, L, H): PyTorch's shapes do not
tell them."""


class Layout(NamedTuple):
    """How PyTorch lays a leaf out: its shape from the shape of ours, and ours from its array."""

    shape: Callable[[Shape], Shape]
    read: Callable[[np.ndarray, Shape], np.ndarray]


def _linear(inputs: int) -> Layout:
    """`[outputs, inputs]`, where so many first axes of ours are inputs."""
    return Layout(
        lambda shape: (math.prod(shape[inputs:]), math.prod(shape[:inputs])),
        lambda array, shape: array.T.reshape(shape),
    )


_reshape = lambda array, shape: array.reshape(shape)
SAME = Layout(lambda shape: shape, _reshape)
FLAT = Layout(lambda shape: (math.prod(shape),), _reshape)
TABLE = Layout(lambda shape: shape[1:], _reshape)
CONVOLUTION = Layout(
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda array, shape: array.transpose(2, 3, 1, 0),
)
LINEAR, FROM_HEADS = _linear(1), _linear(2)


class Place(NamedTuple):
    """Where a leaf of ours is in a file."""

    name: str
    layout: Layout
    third: int | None = None
    """Which third of a tensor that holds query, key and value."""

    def shape(self, ours: Shape) -> Shape:
        """The shape of the whole tensor, from that of our leaf."""
        first, *rest = self.layout.shape(ours)
        return (first if self.third is None else 3 * first, *rest)

    def read(self, tensors: Leaves, ours: Shape) -> np.ndarray:
        """Our leaf, in float32."""
        tensor = tensors[self.name]
        part = tensor if self.third is None else np.split(tensor, 3)[self.third]
        return np.ascontiguousarray(self.layout.read(part, ours), np.float32)


def pair(ours: str, theirs: str, layout: Layout, third: int | None = None) -> dict[str, Place]:
    """Kernel and bias of a layer."""
    return {
        f"{ours}kernel": Place(f"{theirs}.weight", layout, third),
        f"{ours}bias": Place(f"{theirs}.bias", FLAT, third),
    }


def norm(ours: str, theirs: str) -> dict[str, Place]:
    """Scale and bias of a LayerNorm."""
    return {
        f"{ours}scale": Place(f"{theirs}.weight", FLAT),
        f"{ours}bias": Place(f"{theirs}.bias", FLAT),
    }


@dataclass(frozen=True)
class Scheme:
    """How a library names the parameters of a ViT."""

    top: Mapping[str, Place]
    """Of our leaves outside of blocks."""
    block: Mapping[str, Place]
    """Of our leaves inside a block, without the prefixes of blocks."""
    blocks: str
    """Prefix of a block, with `{}` for its number."""
    wrappers: tuple[str, ...]
    """Prefixes, from the outermost inwards, that a model around the ViT puts before names."""
    foreign: tuple[str, ...]
    """Prefixes of tensors that a continual learner has no use for."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Tensors of models that this library cannot compute, and why."""
    fc_norm: Mapping[str, Place] = field(default_factory=dict)
    """Of the final LayerNorm in models that average their patches before it."""
    about: About = About(activation="gelu")
    """What is usual for files with these names."""

    def matches(self, tensors: Leaves) -> int:
        """How many tensors have a name of this scheme."""
        names = {_strip(name, self.wrappers) for name in tensors}
        places = self._places(count_blocks(names, self.blocks))
        return len(names & {place.name for place in (*places.values(), *self.fc_norm.values())})

    def read(
        self, file: str, tensors: Leaves, hints: About
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...], About]:
        """Our leaves, the names that are dropped, and what is known of the model.

        Raises `UserError` that names the tensor which is missing, unknown, misshaped, not of
        floats or not finite, what was expected and what came.
        """
        tensors = self._unwrap(file, tensors)
        dropped = tuple(sorted(name for name in tensors if name.startswith(self.foreign)))
        kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
        places, named = self._present(kept)
        about = hints.over(named).with_family().over(self.about)
        ours = leaf_shapes(self._config(file, kept, places, about))
        expected = {place.name: place.shape(ours[leaf]) for leaf, place in places.items()}
        check_leaves(file, expected, kept)
        zeros = {leaf: np.zeros(ours[leaf], np.float32) for leaf in ours.keys() - places.keys()}
        return (
            zeros | {leaf: p.read(kept, ours[leaf]) for leaf, p in places.items()},
            dropped,
            about,
        )

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

    def _places(self, depth: int) -> dict[str, Place]:
        places = dict(self.top)
        for n in range(depth):
            places |= {
                BLOCK.format(n) + ours: place._replace(name=self.blocks.format(n) + place.name)
                for ours, place in self.block.items()
            }
        return places

    def _present(self, kept: Leaves) -> tuple[dict[str, Place], About]:
        """The places that a file of this kind has, and what their presence says of it."""
        places, about = self._places(count_blocks(kept, self.blocks)), About()
        if any(place.name in kept for place in self.fc_norm.values()):
            places, about = {**places, **self.fc_norm}, About(pooling="mean")
        pre_norm = [leaf for leaf in places if leaf.startswith(PRE_NORM)]
        if any(places[leaf].name in kept for leaf in pre_norm):
            # CLIP's patches have no bias.
            absent = [
                leaf for leaf in (PATCH_BIAS,) if leaf in places and places[leaf].name not in kept
            ]
            about = About(family="clip").over(about)
        else:
            absent = pre_norm
        return {leaf: place for leaf, place in places.items() if leaf not in absent}, about

    def _config(
        self, file: str, kept: Leaves, places: Mapping[str, Place], about: About
    ) -> ViTConfig:
        shape = lambda leaf, rank: shape_of(file, kept, places[leaf].name, rank)
        dim, channels, patch, _ = shape(PATCH, 4)
        mlp, _ = shape(BLOCK.format(0) + HIDDEN + "kernel", 2)
        tokens = shape(POSITION, len(places[POSITION].shape((1, 1, 1))))[-2]
        image = patch * square(file, places[POSITION].name, tokens)
        heads = about.heads or HEADS.get(dim)
        if heads is None:
            raise UserError(
                f"{file}: how many heads a ViT of width {dim} has is not in the file: put its "
                "config.json beside it, or convert it with --heads."
            )
        depth = count_blocks(kept, self.blocks)
        pre_norm = any(leaf.startswith(PRE_NORM) for leaf in places)
        return ViTConfig(patch, dim, depth, heads, mlp, image, channels, pre_norm=pre_norm)


def _strip(name: str, wrappers: tuple[str, ...]) -> str:
    for prefix in wrappers:
        name = name.removeprefix(prefix)
    return name
