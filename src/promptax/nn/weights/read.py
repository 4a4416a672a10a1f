"""Read weights of any kind, told by content."""

import zipfile
from importlib import resources
from pathlib import Path
from typing import Literal

from promptax.core.errors import UserError
from promptax.core.files import require_file
from promptax.nn.vit import ViT
from promptax.nn.weights.about import UNKNOWN, About
from promptax.nn.weights.checkpoint import Weights
from promptax.nn.weights.npz import read_npz
from promptax.nn.weights.safetensors import read_safetensors

BOX = {
    "glyph-vit": (
        "glyph_vit.npz",
        About(
            family="vit", normalisation="unit", licence="Apache-2.0", source="scripts/pretrain.py"
        ),
    ),
}
"""Weights that come with the package: file, and what is known of them."""
PICKLE_TO_SAFETENSORS = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], weights_only=True); "
    "d = d.get('model', d.get('state_dict', d)); "
    "s.save_file({k: v.clone() for k, v in d.items()}, sys.argv[2])"
)
"""A program that converts a pickle, for those who have torch: it takes two names of files."""


def read_weights(path: str | Path, hints: About = UNKNOWN) -> Weights:
    """Read a `.npz` or `.safetensors` file, or weights of the package by their name.

    **Arguments:**

    - `path`: the file. Names of PyTorch pickles are refused: nothing is ever unpickled.
    - `hints`: what you know of the weights; it goes before what files say.

    Raises `UserError` if the file is missing, damaged or of another kind.
    """
    if str(path) in BOX:
        file, about = BOX[str(path)]
        path = Path(str(resources.files("promptax") / "data" / "bundled" / file))
        return read_npz(path, hints.over(about))
    path = Path(path)
    choices = f"give a .npz or .safetensors file, or one of {', '.join(BOX)}"
    require_file(path, "weights", choices)
    kind = _kind(path)
    if kind == "pickle":
        raise UserError(
            f"weights '{path}' are a PyTorch pickle, which could run any code: convert it where "
            f'you have torch, with python -c "{PICKLE_TO_SAFETENSORS}" {path.name} '
            f"{path.stem}.safetensors"
        )
    return read_safetensors(path, hints) if kind == "safetensors" else read_npz(path, hints)


def load_vit(
    path: str | Path,
    image: int | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
) -> ViT:
    """A pre-trained `ViT` from a file, or from the package (`"glyph-vit"`).

    Raises `UserError` as `read_weights` and `Weights.build` do.
    """
    return read_weights(path).build(image, dtype=dtype, remat=remat)


def _kind(path: Path) -> Literal["npz", "safetensors", "pickle"]:
    with path.open("rb") as file:
        head = file.read(9)
    if zipfile.is_zipfile(path):
        return "pickle" if any(name.endswith(".pkl") for name in _members(path)) else "npz"
    # A header's length in eight bytes, and the header; the same first bytes can begin a pickle.
    if head[8:] == b"{" or path.name.endswith((".safetensors", ".safetensors.index.json")):
        return "safetensors"
    pickled = head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".tar")
    return "pickle" if pickled else "npz"


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []
