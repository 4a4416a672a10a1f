"""A naming scheme: a table from our leaves to the tensors of a PyTorch checkpoint."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from promptax.core.errors import UserError
from promptax.nn.vit import ViTConfig
from promptax.nn.weights.check import Leaves, Shape, check_leaves, count_blocks, shape_of
from promptax.nn.weights.leaves import (
    ATTENTION,
    ATTENTION_SCALE,
    BLOCK,
    CLASS,
    GATE,
    HIDDEN,
    KEY_NORM,
    MLP_SCALE,
    OUT,
    PATCH,
    PATCH_BIAS,
    POOL,
    POSITION,
    PRE_NORM,
    PROBE,
    QUERY_NORM,
    REGISTERS,
    leaf_shapes,
)
from promptax.nn.weights.metadata import Family, Metadata
from promptax.nn.weights.structure import Sizes, config_of, has_class_token

HEADS: Mapping[int, int] = {
    192: 3,
    384: 6,
    512: 8,
    768: 12,
    1024: 16,
    1152: 16,
    1280: 16,
    1408: 16,
    1536: 24,
    1664: 16,
}
"""Attention heads by width, for the published sizes: in PyTorch's layout the shapes do not show
them."""

_OPTIONAL_IN_BLOCK = (
    tuple(f"{ATTENTION}{name}/bias" for name in ("query", "key", "value")),
    (f"{QUERY_NORM}scale", f"{QUERY_NORM}bias", f"{KEY_NORM}scale", f"{KEY_NORM}bias"),
    (ATTENTION_SCALE, MLP_SCALE),
    (f"{GATE}kernel", f"{GATE}bias"),
)
"""Leaves of a block that a ViT has all together or not at all."""


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
    part: int = 0
    """Which part of the tensor it is, where one tensor joins several layers of the same width."""
    parts: int = 1
    """How many layers the tensor joins."""

    def shape(self, leaf: Shape) -> Shape:
        """The shape of the whole tensor, from the shape of our leaf."""
        first, *rest = self.layout.shape(leaf)
        return (self.parts * first, *rest)

    def read(self, tensors: Leaves, leaf: Shape) -> np.ndarray:
        """Our leaf in float32, from the tensors of a file and the shape of our leaf."""
        part = np.split(tensors[self.name], self.parts)[self.part]
        return np.ascontiguousarray(self.layout.read(part, leaf), np.float32)


def layer(
    ours: str,
    theirs: str,
    layout: Layout,
    *,
    part: int = 0,
    parts: int = 1,
    joint: str = ".",
) -> dict[str, Stored]:
    """The entries for kernel and bias of a linear layer.

    Args:
        ours: the name of the layer in our leaves, with the final slash.
        theirs: the name of the layer in the checkpoint.
        layout: the layout of its kernel.
        part: its part in a layer that joins several; see `Stored`.
        parts: how many layers are joined.
        joint: what is between the name of the layer and the words "weight" and "bias".
    """
    return {
        f"{ours}kernel": Stored(f"{theirs}{joint}weight", layout, part, parts),
        f"{ours}bias": Stored(f"{theirs}{joint}bias", FLAT, part, parts),
    }


def joined_qkv(ours: str, theirs: str, *, joint: str = ".") -> dict[str, Stored]:
    """The entries of query, key and value in one joint layer; the arguments are as in `layer`."""
    entries = {}
    for part, name in enumerate(("query", "key", "value")):
        place = f"{ours}{name}/"
        entries |= layer(place, theirs, LINEAR, part=part, parts=3, joint=joint)
    return entries


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
    dropped_ends: tuple[str, ...] = ()
    """Ends of the names of further tensors that are not used."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Tensors of models that this library cannot compute, and what the models are."""
    packed: Mapping[str, Stored] = field(default_factory=dict)
    """The entries of a block whose hidden layer and gate are joined under the name of the hidden
    layer. Then that has twice the width of the input of the last layer."""
    heads: Mapping[int, int] = field(default_factory=lambda: HEADS)
    """Attention heads by width."""
    family: Family | None = None
    """The family of all files with these names."""
    fc_norm: Mapping[str, Stored] = field(default_factory=dict)
    """The final LayerNorm of models that apply it to the mean of the patches."""
    defaults: Metadata = Metadata(activation="gelu")
    """The metadata of most files with these names."""

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
        dropped = tuple(
            sorted(
                name
                for name in tensors
                if name.startswith(self.dropped) or name.endswith(self.dropped_ends)
            )
        )
        kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
        stored, shown = self._present(kept)
        shown = Metadata(family=self.family).filled_from(shown)
        metadata = hints.filled_from(shown).filled_from_family()
        if metadata.family == "clip" and metadata.activation is None:
            raise UserError(
                f"{file}: whether this CLIP was trained with quick GELU (OpenAI, DFN, MetaCLIP) or "
                "GELU (LAION, DataComp) is not in the file: put its config.json beside it, or "
                "convert it with Metadata(activation=quick_gelu) or Metadata(activation=gelu)."
            )
        metadata = metadata.filled_from(self.defaults)
        shapes = leaf_shapes(self._config(file, kept, stored, metadata))
        expected = {entry.name: entry.shape(shapes[leaf]) for leaf, entry in stored.items()}
        check_leaves(file, expected, kept)
        leaves = {leaf: entry.read(kept, shapes[leaf]) for leaf, entry in stored.items()}
        # Our ViT always has a bias of the patches, which CLIP has not, and a bias of the keys if
        # the queries have one, which DINOv3 has not.
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
        depth = count_blocks(kept, self.block_prefix)
        stored = self._stored(depth)
        if self._is_packed(kept):
            for block in range(depth):
                for leaf, entry in self.packed.items():
                    name = self.block_prefix.format(block) + entry.name
                    stored[BLOCK.format(block) + leaf] = entry._replace(name=name)
        shown = Metadata()
        if any(entry.name in kept for entry in self.fc_norm.values()):
            stored |= self.fc_norm
            shown = Metadata(pooling="mean")
        absent = self._absent(kept, stored)
        left = {leaf: entry for leaf, entry in stored.items() if leaf not in absent}
        return left, _shown_by(left, kept).filled_from(shown)

    def _is_packed(self, kept: Leaves) -> bool:
        """Whether the hidden layer of the MLP is joined with a gate, by its width."""
        if not self.packed:
            return False
        block = self.block_prefix.format(0)
        hidden = kept.get(block + self.block[HIDDEN + "kernel"].name)
        out = kept.get(block + self.block[OUT + "kernel"].name)
        if hidden is None or out is None or hidden.ndim != 2 or out.ndim != 2:
            return False
        return hidden.shape[0] == 2 * out.shape[1]

    def _absent(self, kept: Leaves, stored: Mapping[str, Stored]) -> set[str]:
        """The leaves of the scheme that this kind of ViT does not have."""
        groups = [
            [leaf for leaf in stored if leaf.startswith(PRE_NORM)],
            [leaf for leaf in stored if leaf.startswith(POOL)],
            [leaf for leaf in stored if leaf == REGISTERS],
        ]
        for names in _OPTIONAL_IN_BLOCK:
            groups.append(
                [leaf for leaf in stored if leaf.partition("/")[2].partition("/")[2] in names]
            )
        absent = set()
        for group in groups:
            if not any(stored[leaf].name in kept for leaf in group):
                absent.update(group)
        has_pre_norm = any(leaf.startswith(PRE_NORM) for leaf in stored.keys() - absent)
        # CLIP's patches have no bias, but a file may hold one all the same.
        if has_pre_norm and PATCH_BIAS in stored and stored[PATCH_BIAS].name not in kept:
            absent.add(PATCH_BIAS)
        present = {leaf for leaf, entry in stored.items() if entry.name in kept} - absent
        if not has_class_token(present, self._positions(kept, stored)):
            absent.add(CLASS)
        return absent

    def _positions(self, kept: Leaves, stored: Mapping[str, Stored]) -> int | None:
        """The number of learned positions, or None if they are not in the file."""
        tensor = kept.get(stored[POSITION].name) if POSITION in stored else None
        return tensor.shape[-2] if tensor is not None and tensor.ndim > 1 else None

    def _config(
        self, file: str, kept: Leaves, stored: Mapping[str, Stored], metadata: Metadata
    ) -> ViTConfig:
        """The shape of the ViT, by the shapes of a few tensors."""

        def shape(leaf: str, rank: int) -> Shape:
            return shape_of(file, kept, stored[leaf].name, rank)

        dim, channels, patch, _ = shape(PATCH, rank=4)
        hidden = BLOCK.format(0) + HIDDEN + "kernel"
        mlp = shape(hidden, rank=2)[0] // stored[hidden].parts
        positions = None
        position_name = "pos_embed"
        if POSITION in stored:
            position_name = stored[POSITION].name
            # The batch axis of a position embedding is not in every library's files.
            rank = len(stored[POSITION].shape((1, 1, 1)))
            positions = shape(POSITION, rank)[-2]
        heads = metadata.heads or self.heads.get(dim)
        if heads is None:
            raise UserError(
                f"{file}: how many heads a ViT of width {dim} has is not in the file: put its "
                "config.json beside it, or convert it with Metadata(heads=...)."
            )
        sizes = Sizes(
            patch=patch,
            dim=dim,
            channels=channels,
            depth=count_blocks(kept, self.block_prefix),
            heads=heads,
            mlp=mlp,
            registers=shape(REGISTERS, rank=3)[1] if REGISTERS in stored else 0,
            positions=positions,
        )
        return config_of(file, stored, sizes, metadata, position_name=position_name)


def _shown_by(stored: Mapping[str, Stored], kept: Leaves) -> Metadata:
    """The metadata that the optional leaves of a file reveal."""
    first = BLOCK.format(0)
    if any(leaf.startswith(PRE_NORM) for leaf in stored):
        return Metadata(family="clip")
    if PROBE in stored:
        return Metadata(family="siglip")
    activation = "silu" if f"{first}{GATE}kernel" in stored else None
    family = None
    if first + ATTENTION_SCALE in stored and POSITION in stored:
        # DeiT 3 has no registers, and no position for its class token.
        position = kept.get(stored[POSITION].name)
        is_square = position is not None and position.ndim > 1 and _is_square(position.shape[-2])
        family = "deit3" if is_square and REGISTERS not in stored else "dinov2"
    return Metadata(family=family, activation=activation)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _strip(name: str, wrappers: tuple[str, ...]) -> str:
    for prefix in wrappers:
        name = name.removeprefix(prefix)
    return name
