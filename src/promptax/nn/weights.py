"""Pre-trained weights: Google's `.npz` files, in both naming generations, to and from a `ViT`."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from promptax.errors import UserError
from promptax.nn.vit import Block, ViT, ViTConfig

FOREIGN = ("head/", "pre_logits/")
"""Leaves of the checkpoint's own classifier, which a continual learner has no use for."""
BOX = {"glyph-vit": "glyph_vit.npz"}
"""Weights that come with the package."""

_POSITION = "Transformer/posembed_input/pos_embedding"
_BLOCK = "Transformer/encoderblock_{}/"
_ATTENTION = "MultiHeadDotProductAttention_0/"
_TOP: Mapping[str, Callable[[ViT], Array]] = {
    "embedding/kernel": lambda vit: vit.patch_kernel,
    "embedding/bias": lambda vit: vit.patch_bias,
    "cls": lambda vit: vit.cls_token,
    _POSITION: lambda vit: vit.position,
    "Transformer/encoder_norm/scale": lambda vit: vit.norm.scale,
    "Transformer/encoder_norm/bias": lambda vit: vit.norm.bias,
}
# Of a block, all but query, key and value, which a `Block` holds as one array.
_PLAIN: Mapping[str, Callable[[Block], Array]] = {
    "LayerNorm_0/scale": lambda block: block.attention_norm.scale,
    "LayerNorm_0/bias": lambda block: block.attention_norm.bias,
    _ATTENTION + "out/kernel": lambda block: block.attention.out,
    _ATTENTION + "out/bias": lambda block: block.attention.out_bias,
    "LayerNorm_1/scale": lambda block: block.mlp_norm.scale,
    "LayerNorm_1/bias": lambda block: block.mlp_norm.bias,
    "MlpBlock_0/Dense_0/kernel": lambda block: block.mlp.hidden.kernel,
    "MlpBlock_0/Dense_0/bias": lambda block: block.mlp.hidden.bias,
    "MlpBlock_0/Dense_1/kernel": lambda block: block.mlp.out.kernel,
    "MlpBlock_0/Dense_1/bias": lambda block: block.mlp.out.bias,
}
# The first release numbered the submodules of a block in one sequence, later ones by class.
_FIRST_RELEASE = {
    "LayerNorm_2/": "LayerNorm_1/",
    "MlpBlock_3/": "MlpBlock_0/",
    "MultiHeadDotProductAttention_1/": _ATTENTION,
}


@dataclass(frozen=True)
class Weights:
    """A checkpoint as it was read: which file, which bytes, and what of it is not used."""

    name: str
    sha256: str
    leaves: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]

    def config(self, image: int | None = None) -> ViTConfig:
        """The shape of the ViT that these weights are of, for images of another size if given.

        Raises `UserError` where a leaf that tells the shape is missing or has the wrong rank.
        """
        kernel = self._leaf("embedding/kernel", 4)
        heads = self._leaf(_BLOCK.format(0) + _ATTENTION + "key/kernel", 3)
        mlp = self._leaf(_BLOCK.format(0) + "MlpBlock_0/Dense_0/kernel", 2)
        position = self._leaf(_POSITION, 3)
        grid = _grid(position[1])
        if position[1] != 1 + grid**2 or not grid:
            raise UserError(
                f"{self.name}: '{_POSITION}' should hold a class token and a square of patches, "
                f"but has {position[1]} tokens."
            )
        blocks = (re.match(r"Transformer/encoderblock_(\d+)/", name) for name in self.leaves)
        depth = 1 + max(int(match[1]) for match in blocks if match)
        size = grid * kernel[0] if image is None else image
        return ViTConfig(kernel[0], kernel[3], depth, heads[1], mlp[1], size, kernel[2])

    def _leaf(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.leaves:
            raise UserError(
                f"{self.name}: the leaf '{name}' is missing: is this a ViT's .npz file?"
            )
        shape = self.leaves[name].shape
        if len(shape) != rank:
            raise UserError(
                f"{self.name}: '{name}' should have {rank} axes, but has shape {shape}."
            )
        return shape

    def to_vit(
        self,
        image: int | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        remat: bool = False,
    ) -> ViT:
        """Build the ViT; its position embedding is resized for another image size.

        Raises `UserError` that names the leaf which is missing, unknown, misshaped or not
        finite, what was expected and what came.
        """
        config = self.config(image)
        make = lambda: ViT(config, key=jr.key(0), dtype=dtype, remat=remat)
        skeleton = eqx.filter_eval_shape(make)
        expected = {name: leaf.shape for name, leaf in jax.eval_shape(vit_leaves, skeleton).items()}
        # The number of tokens is right (see `config`), if perhaps not that of this image size.
        tokens = expected[_POSITION][1]
        expected[_POSITION] = (1, self.leaves[_POSITION].shape[1], config.dim)
        _check(self.name, expected, self.leaves)
        position = resize_position(self.leaves[_POSITION], tokens)
        return vit_from_leaves(skeleton, {**self.leaves, _POSITION: position})


def read_npz(path: str | Path) -> Weights:
    """Read a `.npz` checkpoint, or one of the package's own by its name.

    Raises `UserError` if the file is missing, truncated or no `.npz`.
    """
    path = (
        Path(str(resources.files("promptax") / "box" / BOX[str(path)]))
        if str(path) in BOX
        else Path(path)
    )
    if not path.is_file():
        raise UserError(f"weights '{path}' not found: give a .npz file or one of {', '.join(BOX)}.")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            leaves = {_rename(name): file[name] for name in file.files}
    except Exception as error:
        # NumPy lets through whatever its zip, zlib and header parsers raise on a damaged file.
        raise UserError(f"weights '{path}' cannot be read as .npz ({error}): truncated?") from None
    dropped = tuple(sorted(name for name in leaves if name.startswith(FOREIGN)))
    kept = {name: leaf for name, leaf in leaves.items() if name not in dropped}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(path.name, digest, kept, dropped)


def load_vit(
    path: str | Path,
    image: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
) -> ViT:
    """A pre-trained `ViT` from a `.npz` file, or from the package (`"glyph-vit"`).

    Raises `UserError` as `read_npz` and `Weights.to_vit` do.
    """
    return read_npz(path).to_vit(image, dtype=dtype, remat=remat)


def vit_leaves(vit: ViT) -> dict[str, Array]:
    """The parameters of a ViT under the names, and in the shapes, of the `.npz` files."""
    leaves = {name: get(vit) for name, get in _TOP.items()}
    leaves["cls"] = leaves["cls"][None, None]
    leaves[_POSITION] = leaves[_POSITION][None]
    stacked = {name: get(vit.blocks) for name, get in _PLAIN.items()}
    for part, name in enumerate(("query", "key", "value")):
        stacked[f"{_ATTENTION}{name}/kernel"] = vit.blocks.attention.qkv[:, :, part]
        stacked[f"{_ATTENTION}{name}/bias"] = vit.blocks.attention.qkv_bias[:, part]
    for block in range(vit.config.depth):
        leaves |= {_BLOCK.format(block) + name: leaf[block] for name, leaf in stacked.items()}
    return leaves


def vit_from_leaves(like: ViT, leaves: Mapping[str, Array | np.ndarray]) -> ViT:
    """The inverse of `vit_leaves`: a ViT of the shape of `like` with these parameters."""

    def stack(name: str) -> np.ndarray:
        return np.stack([leaves[_BLOCK.format(i) + name] for i in range(like.config.depth)])

    def qkv(part: str) -> np.ndarray:
        parts = [stack(f"{_ATTENTION}{name}/{part}") for name in ("query", "key", "value")]
        return np.stack(parts, axis=-3)

    values = [leaves[name].reshape(get(like).shape) for name, get in _TOP.items()]
    values += [stack(name) for name in _PLAIN] + [qkv("kernel"), qkv("bias")]
    return eqx.tree_at(_parameters, like, [jnp.asarray(value, jnp.float32) for value in values])


def resize_position(
    position: Float[np.ndarray, "1 tokens dim"], tokens: int
) -> Float[np.ndarray, "1 new_tokens dim"]:
    """Interpolate the grid part bilinearly to another number of patches; the class token's
    embedding is kept (Dosovitskiy et al., 2021, section 3.2)."""
    if position.shape[1] == tokens:
        return position
    old, new = _grid(position.shape[1]), _grid(tokens)
    grid = position[0, 1:].astype(np.float32).reshape(old, old, -1)
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "bilinear")
    return np.concatenate([position[:, :1], np.asarray(grid).reshape(1, new * new, -1)], axis=1)


def _grid(tokens: int) -> int:
    """Patches along a side, where so many tokens include the class token."""
    return round(max(tokens - 1, 0) ** 0.5)


def _parameters(vit: ViT) -> list[Any]:
    top, plain = _TOP.values(), _PLAIN.values()
    attention = vit.blocks.attention
    return [
        *(get(vit) for get in top),
        *(get(vit.blocks) for get in plain),
        attention.qkv,
        attention.qkv_bias,
    ]


def _rename(name: str) -> str:
    if not name.startswith("Transformer/encoderblock_"):
        return name
    for old, new in _FIRST_RELEASE.items():
        name = name.replace(old, new)
    return name


def _check(file: str, expected: Mapping[str, tuple[int, ...]], leaves: Mapping[str, np.ndarray]):
    if missing := sorted(set(expected) - set(leaves)):
        raise UserError(f"{file}: the leaf '{missing[0]}' is missing ({len(missing)} in all).")
    if extra := sorted(set(leaves) - set(expected)):
        raise UserError(
            f"{file}: the leaf '{extra[0]}' is not part of a ViT ({len(extra)} in all)."
        )
    for name, shape in expected.items():
        if leaves[name].shape != shape:
            raise UserError(
                f"{file}: '{name}' should have shape {shape}, but has {leaves[name].shape}."
            )
        if leaves[name].dtype.kind != "f":
            raise UserError(f"{file}: '{name}' should hold floats, but has {leaves[name].dtype}.")
        if not np.isfinite(leaves[name]).all():
            raise UserError(f"{file}: '{name}' holds values that are not finite.")
