"""Read weights by the name of a file, by a tag, or by the name of weights in the package."""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from promptax.core.errors import UserError
from promptax.core.files import npz_names, open_file, require_file
from promptax.core.limits import open_zip
from promptax.nn.execution import AUTO, Execution
from promptax.nn.vit import ViT
from promptax.nn.weights.cache import find_cached
from promptax.nn.weights.catalogue import CATALOGUE, check_name, did_you_mean
from promptax.nn.weights.metadata import UNKNOWN, Metadata
from promptax.nn.weights.npz import read_npz
from promptax.nn.weights.resnet import ResNetWeights, is_resnet, read_resnet
from promptax.nn.weights.safetensors import LENGTH_BYTES, leaf_names, read_safetensors
from promptax.nn.weights.torch import read_torch
from promptax.nn.weights.vit import Weights


class Bundled(NamedTuple):
    """Weights that come with the package."""

    file: str
    metadata: Metadata


BUNDLED = {
    "glyph-vit": Bundled(
        "glyph_vit.npz",
        Metadata(
            family="vit", normalisation="unit", licence="Apache-2.0", source="scripts/pretrain.py"
        ),
    ),
}
"""The weights that come with the package, by name."""
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_SAFETENSORS_SUFFIXES = (".safetensors", ".safetensors.index.json")
"""A `.safetensors` file begins with the length of its header, and the header with a brace."""


def read_backbone(name: str | Path, hints: Metadata = UNKNOWN) -> Weights | ResNetWeights:
    """Read the weights of a ViT or of a ResNet; `build` of the result makes the backbone.

    Args:
        name: as in `read_weights`.
        hints: as in `read_weights`; a ResNet needs none.

    Raises:
        UserError: as `read_weights` and `read_resnet` do.
    """
    path, known = find_file(name)
    if is_resnet(_leaf_names(path)):
        return read_resnet(path)
    return _read_named(name, path, hints.filled_from(known))


def read_weights(name: str | Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read the weights of a ViT.

    Args:
        name: a `.npz`, `.safetensors`, `.pth` or `.bin` file, the index of `.safetensors` shards, a
            tag of `promptax weights list` that has been fetched, or the name of weights in the
            package.
            Of a PyTorch file only the tensors are read: nothing is ever unpickled.
        hints: facts about the weights that you know. They take precedence over those of the
            catalogue, and these over those in the file.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    path, known = find_file(name)
    return _read_named(name, path, hints.filled_from(known))


def load_vit(
    name: str | Path,
    image: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    execution: Execution = AUTO,
) -> ViT:
    """A pre-trained `ViT`.

    Args:
        name: as in `read_weights`, for example `"vit_base_patch16_224.augreg_in21k"`.
        image: side of the square images that it takes, in pixels; that of pre-training, if None.
            The position embedding is resized for another size.
        dtype: the type that it computes in; the parameters stay in float32.
        execution: how it is computed, which changes speed and memory but not the features.

    Raises:
        UserError: as `read_weights` and `Weights.build` do.
    """
    return read_weights(name).build(image, dtype=dtype, execution=execution)


def read_file(path: Path, hints: Metadata = UNKNOWN) -> Weights:
    """Read a file of a ViT's weights, whose format is recognised by its content.

    Raises `UserError` if the file is damaged or of another kind.
    """
    readers = {"npz": read_npz, "safetensors": read_safetensors, "torch": read_torch}
    return readers[_kind(path)](path, hints)


def find_file(name: str | Path) -> tuple[Path, Metadata]:
    """The file of a name, and what is known about it without reading it."""
    text = str(name)
    if text in BUNDLED:
        file, metadata = BUNDLED[text]
        return Path(str(resources.files("promptax") / "data" / "bundled" / file)), metadata
    path = Path(name)
    # A file goes before a tag, so that no entry of the catalogue can ever hide a user's file.
    if text in CATALOGUE and not path.is_file():
        entry = CATALOGUE[text]
        cached = find_cached(entry)
        if cached is None:
            raise UserError(
                f"weights '{text}' are not on this machine: run `promptax weights fetch "
                f"{text}`, or `promptax train ... --fetch`."
            )
        return cached, entry.metadata()
    published = [
        tag for tag, entry in CATALOGUE.items() if (entry.url or "").endswith(f"/{path.name}")
    ]
    fetch = f"run `promptax weights fetch {published[0]}`, or " if published else ""
    remedy = (
        f"{fetch}give a .npz, .safetensors or PyTorch file, a tag of `promptax weights list`, or "
        "one of "
        f"{', '.join(BUNDLED)}"
    )
    try:
        require_file(path, "weights", remedy)
    except UserError as error:
        check_name(text)
        raise UserError(f"{error}{did_you_mean(text, {**CATALOGUE, **BUNDLED})}") from None
    return path, UNKNOWN


def _read_named(name: str | Path, path: Path, hints: Metadata) -> Weights:
    weights = read_file(path, hints)
    # All files of the hub have the same name, so that in a result only the tag says which it was.
    return replace(weights, name=str(name)) if str(name) in CATALOGUE else weights


def _kind(path: Path) -> Literal["npz", "safetensors", "torch"]:
    """The format of a file, by its content where that is conclusive, else by its name."""
    with open_file(path, "weights") as file:
        head = file.read(LENGTH_BYTES + 1)
    # PyTorch's files have been zip archives, as `.npz` is, since version 1.6.
    if zipfile.is_zipfile(path):
        return "torch" if any(name.endswith(".pkl") for name in _members(path)) else "npz"
    # This comes before the test of the first byte, which may be that of a pickle by chance: it is
    # the lowest one of the length.
    if head[LENGTH_BYTES:] == b"{" or path.name.endswith(_SAFETENSORS_SUFFIXES):
        return "safetensors"
    is_pickle = head.startswith(b"\x80") or path.suffix in _PICKLE_SUFFIXES
    return "torch" if is_pickle else "npz"


def _members(path: Path) -> list[str]:
    try:
        with open_file(path, "weights") as file, open_zip(file, path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _leaf_names(path: Path) -> Sequence[str]:
    """The names in a file, or none if it cannot be read: whoever reads it next says why."""
    try:
        if path.suffix == ".safetensors":
            return leaf_names(path)
        return npz_names(path)
    except Exception:
        return []
