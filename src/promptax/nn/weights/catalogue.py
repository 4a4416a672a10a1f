"""Public checkpoints by timm's tags, the names by which the field knows them.

A tag is an architecture and a recipe: `vit_base_patch16_224.augreg_in21k`. Only checkpoints that
`promptax.nn.weights.read` can load are listed. To add one, add a line to `CATALOGUE`; a new
architecture has to be computed by `ViT` and known to `naming/` first.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptax.core.errors import UserError
from promptax.core.settings import Normalisation
from promptax.nn.vit import Activation
from promptax.nn.weights.metadata import Family, Metadata


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that anybody can download."""

    tag: str
    """timm's architecture and recipe, with a dot between them."""
    family: Family
    trained_on: str
    """The data of pre-training; with an arrow, those of a supervised fine-tuning after it."""
    licence: str
    """The licence as timm or the authors record it."""
    dim: int
    """Width of a token, and of the features."""
    depth: int
    """Number of blocks."""
    patch: int
    """Side of a patch, in pixels."""
    image: int
    """Side of the images in pre-training, in pixels."""
    normalisation: Normalisation
    """Normalisation of the images in pre-training."""
    activation: Activation = "gelu"
    """Activation of the MLP."""
    used_by: str = ""
    """Continual-learning papers whose code takes this checkpoint."""
    url: str | None = None
    """Address of the file outside the Hugging Face hub; None: the hub has it under the tag."""
    sha256: str | None = None
    """Digest of the file in hexadecimal digits; None where none is published."""
    heads: int | None = None
    """Attention heads, where they are not those that are usual for the width."""

    @property
    def architecture(self) -> str:
        """The part of the tag that does not name the recipe."""
        return self.tag.partition(".")[0]

    @property
    def repository(self) -> str | None:
        """The repository on the Hugging Face hub, or None if the file is elsewhere."""
        return f"timm/{self.tag}" if self.url is None else None

    @property
    def filename(self) -> str:
        """The name under which the file is kept."""
        if self.url is None:
            return "model.safetensors"
        return self.url.rpartition("/")[2]

    @property
    def parameters(self) -> float:
        """The number of parameters of the blocks and the patch embedding, in millions."""
        is_gated = self.activation == "silu"
        # DINOv2's giant model makes up for the third matrix of its MLP by a narrower one.
        mlp = 4096 if self.dim == _DINOV2_GIANT else 4 * self.dim
        block = 4 * self.dim**2 + (3 if is_gated else 2) * self.dim * mlp
        pool = block if self.family == "siglip" else 0
        return (self.depth * block + pool + 3 * self.patch**2 * self.dim) / 1e6

    def metadata(self) -> Metadata:
        """The facts that the arrays of the file do not show."""
        return Metadata(
            family=self.family,
            activation=self.activation,
            normalisation=self.normalisation,
            heads=self.heads,
            image=self.image if self.family == "dinov3" else None,
            licence=self.licence,
            source=self.repository or self.url,
        )


_SIZES = {
    "tiny": (192, 12),
    "small": (384, 12),
    "small_plus": (384, 12),
    "medium": (512, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "huge": (1280, 32),
    "huge_plus": (1280, 32),
    "giant": (1536, 40),
}
"""Width and depth of the published sizes."""
_DINOV2_GIANT = 1536
_IMAGES = {"dinov2": 518, "dinov3": 256}
"""Sides of images in pre-training, of families whose names do not say them."""
_ARCHITECTURE = re.compile(
    r"(?:vit|deit3?)_(?P<size>[a-z_]+?)_patch(?P<patch>\d+)(?:_reg4)?"
    r"(?:_(?P<family>clip|siglip|dinov2|dinov3))?(?:_(?P<image>\d+))?\."
)


def _checkpoint(tag: str, family: Family, trained_on: str, **facts: Any) -> Pretrained:
    """An entry whose shape is the one that its tag names.

    Args:
        tag, family, trained_on: as in `Pretrained`.
        facts: other fields, where they differ from what most checkpoints have.
    """
    match = _ARCHITECTURE.match(tag)
    assert match is not None, tag
    dim, depth = _SIZES[match["size"]]
    usual: dict[str, Any] = {"licence": "Apache-2.0"}
    return Pretrained(
        tag=tag,
        family=family,
        trained_on=trained_on,
        dim=dim,
        depth=depth,
        patch=int(match["patch"]),
        image=int(match["image"] or _IMAGES[match["family"]]),
        **(usual | facts),
    )


def _google(tag: str, file: str, used_by: str = "") -> Pretrained:
    """A checkpoint of the first release, in the bucket of its authors."""
    return _checkpoint(
        tag,
        "vit",
        "ImageNet-21k",
        normalisation="symmetric",
        # Flax computes GELU by its tanh approximation, PyTorch does not.
        activation="gelu_tanh",
        url=f"https://storage.googleapis.com/vit_models/imagenet21k/{file}",
        used_by=used_by,
    )


def _augreg(architecture: str, recipe: str, trained_on: str, used_by: str = "") -> Pretrained:
    """A checkpoint of "How to train your ViT?" (Steiner et al., 2022), as timm hosts it."""
    return _checkpoint(
        f"{architecture}.{recipe}", "vit", trained_on, normalisation="symmetric", used_by=used_by
    )


def _facebook(tag: str, family: Family, **facts: Any) -> Pretrained:
    """A DeiT, MAE or DINO, as timm hosts it."""
    return _checkpoint(tag, family, "ImageNet-1k", normalisation="imagenet", **facts)


def _deit3(architecture: str, recipe: str, trained_on: str) -> Pretrained:
    return _checkpoint(
        f"deit3_{architecture}.{recipe}", "deit3", trained_on, normalisation="imagenet"
    )


def _dinov2(architecture: str) -> Pretrained:
    """A DINOv2, as timm hosts it; the giant model has a gated MLP."""
    activation = "silu" if architecture.startswith("giant") else "gelu"
    return _checkpoint(
        f"vit_{architecture}_dinov2.lvd142m",
        "dinov2",
        "LVD-142M",
        normalisation="imagenet",
        activation=activation,
    )


def _dinov3(architecture: str) -> Pretrained:
    """A DINOv3, as timm hosts it; the "plus" models have a gated MLP."""
    return _checkpoint(
        f"vit_{architecture}_patch16_dinov3.lvd1689m",
        "dinov3",
        "LVD-1689M",
        normalisation="imagenet",
        licence="DINOv3 License",
        activation="silu" if architecture.endswith("_plus") else "gelu",
    )


def _siglip(tag: str) -> Pretrained:
    """The image tower of a SigLIP, or of a SigLIP 2, as timm hosts it and computes it."""
    return _checkpoint(tag, "siglip", "WebLI", normalisation="symmetric")


def _clip(tag: str, trained_on: str, **facts: Any) -> Pretrained:
    """The image tower of a CLIP, as timm hosts it."""
    usual: dict[str, Any] = {"normalisation": "clip"}
    return _checkpoint(tag, "clip", trained_on, **(usual | facts))


_IN21K = "ImageNet-21k"
_FINETUNED = "ImageNet-21k -> 1k"
_NONCOMMERCIAL = "CC-BY-NC-4.0"
_OPENAI = "400 M pairs of OpenAI"
_LAION = "LAION-2B"
_MOCO = "https://dl.fbaipublicfiles.com/moco-v3/"
_IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/"

_ENTRIES = (
    _google(
        "vit_base_patch16_224.orig_in21k", "ViT-B_16.npz", used_by="L2P, DualPrompt, HiDe-Prompt"
    ),
    _google("vit_base_patch32_224.orig_in21k", "ViT-B_32.npz"),
    _google("vit_large_patch16_224.orig_in21k", "ViT-L_16.npz"),
    _google("vit_large_patch32_224.orig_in21k", "ViT-L_32.npz"),
    _google("vit_huge_patch14_224.orig_in21k", "ViT-H_14.npz"),
    _augreg("vit_tiny_patch16_224", "augreg_in21k", _IN21K),
    _augreg("vit_small_patch16_224", "augreg_in21k", _IN21K),
    _augreg("vit_small_patch32_224", "augreg_in21k", _IN21K),
    _augreg("vit_base_patch8_224", "augreg_in21k", _IN21K),
    _augreg("vit_base_patch16_224", "augreg_in21k", _IN21K, used_by="SLCA, RanPAC"),
    _augreg("vit_base_patch32_224", "augreg_in21k", _IN21K),
    _augreg("vit_large_patch16_224", "augreg_in21k", _IN21K),
    _augreg("vit_tiny_patch16_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_small_patch16_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_small_patch32_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_base_patch8_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg(
        "vit_base_patch16_224",
        "augreg_in21k_ft_in1k",
        _FINETUNED,
        used_by="S-Prompts, CODA-Prompt, RanPAC",
    ),
    _augreg("vit_base_patch32_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_large_patch16_224", "augreg_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_base_patch8_224", "augreg2_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_base_patch16_224", "augreg2_in21k_ft_in1k", _FINETUNED),
    _augreg("vit_small_patch16_224", "augreg_in1k", "ImageNet-1k"),
    _augreg("vit_base_patch16_224", "augreg_in1k", "ImageNet-1k"),
    _augreg("vit_base_patch32_224", "augreg_in1k", "ImageNet-1k"),
    _facebook("deit_tiny_patch16_224.fb_in1k", "deit"),
    _facebook("deit_small_patch16_224.fb_in1k", "deit"),
    _facebook("deit_base_patch16_224.fb_in1k", "deit"),
    _facebook("vit_base_patch16_224.mae", "mae", licence=_NONCOMMERCIAL),
    _facebook("vit_large_patch16_224.mae", "mae", licence=_NONCOMMERCIAL),
    _facebook("vit_huge_patch14_224.mae", "mae", licence=_NONCOMMERCIAL),
    _facebook("vit_small_patch8_224.dino", "dino"),
    _facebook("vit_small_patch16_224.dino", "dino"),
    _facebook("vit_base_patch8_224.dino", "dino"),
    _facebook("vit_base_patch16_224.dino", "dino", used_by="HiDe-Prompt"),
    # timm has neither iBOT nor MoCo v3: the recipes in these tags are ours, in its style.
    _facebook(
        "vit_base_patch16_224.ibot_in1k",
        "ibot",
        url=f"{_IBOT}vitb_16/checkpoint_teacher.pth",
        used_by="HiDe-Prompt",
    ),
    _checkpoint(
        "vit_base_patch16_224.ibot_in21k",
        "ibot",
        _IN21K,
        normalisation="imagenet",
        url=f"{_IBOT}vitb_16_pt22k/checkpoint.pth",
        used_by="HiDe-Prompt",
    ),
    _checkpoint(
        "vit_large_patch16_224.ibot_in21k",
        "ibot",
        _IN21K,
        normalisation="imagenet",
        url=f"{_IBOT}vitl_16_pt22k/checkpoint.pth",
    ),
    # The small MoCo v3 has twice the heads of other small ViTs.
    _facebook(
        "vit_small_patch16_224.mocov3_in1k",
        "mocov3",
        url=f"{_MOCO}vit-s-300ep/vit-s-300ep.pth.tar",
        heads=12,
        licence=_NONCOMMERCIAL,
    ),
    _facebook(
        "vit_base_patch16_224.mocov3_in1k",
        "mocov3",
        url=f"{_MOCO}vit-b-300ep/vit-b-300ep.pth.tar",
        licence=_NONCOMMERCIAL,
        used_by="HiDe-Prompt",
    ),
    _deit3("small_patch16_224", "fb_in1k", "ImageNet-1k"),
    _deit3("medium_patch16_224", "fb_in1k", "ImageNet-1k"),
    _deit3("base_patch16_224", "fb_in1k", "ImageNet-1k"),
    _deit3("large_patch16_224", "fb_in1k", "ImageNet-1k"),
    _deit3("huge_patch14_224", "fb_in1k", "ImageNet-1k"),
    _deit3("small_patch16_224", "fb_in22k_ft_in1k", _FINETUNED),
    _deit3("medium_patch16_224", "fb_in22k_ft_in1k", _FINETUNED),
    _deit3("base_patch16_224", "fb_in22k_ft_in1k", _FINETUNED),
    _deit3("large_patch16_224", "fb_in22k_ft_in1k", _FINETUNED),
    _deit3("huge_patch14_224", "fb_in22k_ft_in1k", _FINETUNED),
    _dinov2("small_patch14"),
    _dinov2("base_patch14"),
    _dinov2("large_patch14"),
    _dinov2("giant_patch14"),
    _dinov2("small_patch14_reg4"),
    _dinov2("base_patch14_reg4"),
    _dinov2("large_patch14_reg4"),
    _dinov2("giant_patch14_reg4"),
    _dinov3("small"),
    _dinov3("small_plus"),
    _dinov3("base"),
    _dinov3("large"),
    _dinov3("huge_plus"),
    _clip("vit_base_patch32_clip_224.openai", _OPENAI, activation="quick_gelu"),
    _clip(
        "vit_base_patch16_clip_224.openai", _OPENAI, activation="quick_gelu", used_by="S-Prompts"
    ),
    _clip("vit_large_patch14_clip_224.openai", _OPENAI, activation="quick_gelu"),
    _clip("vit_base_patch32_clip_224.laion2b", _LAION, used_by="RanPAC"),
    _clip("vit_base_patch16_clip_224.laion2b", _LAION),
    # Trained with the constants of Google's models instead of OpenAI's.
    _clip("vit_large_patch14_clip_224.laion2b", _LAION, normalisation="symmetric"),
    _clip("vit_huge_patch14_clip_224.laion2b", _LAION),
    _clip("vit_base_patch32_clip_224.datacompxl", "DataComp-1B"),
    _clip("vit_base_patch16_clip_224.datacompxl", "DataComp-1B"),
    _clip("vit_large_patch14_clip_224.datacompxl", "DataComp-1B"),
    _siglip("vit_base_patch16_siglip_224.webli"),
    _siglip("vit_base_patch16_siglip_256.webli"),
    _siglip("vit_base_patch16_siglip_384.webli"),
    _siglip("vit_base_patch16_siglip_224.v2_webli"),
    _siglip("vit_base_patch16_siglip_256.v2_webli"),
    _siglip("vit_base_patch16_siglip_384.v2_webli"),
)
CATALOGUE: Mapping[str, Pretrained] = {entry.tag: entry for entry in _ENTRIES}
"""The checkpoints by their tags."""


UNSUPPORTED: Mapping[str, str] = {
    r"deit.*distilled": "a distilled DeiT, whose features are two tokens",
    r"eva02_": "an EVA-02, which has LayerNorms inside attention and the MLP",
    r"beit": "a BEiT, whose attention has biases by relative position",
    r"vit_.*(_rope|_pe_|_srelpos|_relpos)": "a ViT with other positions than those of DINOv3",
    r"swin": "a Swin Transformer, whose attention is in windows, without a place for prompts",
    r"(convnext|efficientnet|mobilenet|regnet)": "a convolutional network, which has no tokens",
}
"""Patterns of the names of well-known families that `ViT` does not compute, and why."""


def entry_of(tag: str) -> Pretrained:
    """The entry of a tag.

    Raises `UserError` as `check_name` does, and with the nearest names if the tag is unknown.
    """
    if tag in CATALOGUE:
        return CATALOGUE[tag]
    check_name(tag)
    hint = did_you_mean(tag, CATALOGUE)
    raise UserError(f"unknown weights '{tag}'.{hint} `promptax weights list` shows all tags.")


def check_name(name: str) -> None:
    """Refuse names of timm that cannot be used as weights, with a reason.

    These are the names of unsupported families, and architectures without a recipe: timm has
    changed which recipe such a name stands for, so papers that name the same architecture have used
    different weights.

    Raises `UserError` with the reason, and the tags of an architecture.
    """
    candidates = [tag for tag, entry in CATALOGUE.items() if entry.architecture == name]
    if candidates:
        raise UserError(
            f"'{name}' is an architecture, whose meaning as a checkpoint has changed over timm's "
            f"versions: say which weights you mean, one of {', '.join(candidates)}."
        )
    for pattern, reason in UNSUPPORTED.items():
        if re.match(pattern, name):
            raise UserError(
                f"'{name}' is {reason}: this library cannot compute it. `promptax weights "
                "list` shows what it can."
            )


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """A question with the names that are nearest to `name`, or an empty text if none is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
