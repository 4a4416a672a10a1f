"""Public checkpoints by timm's tags, the names by which the field knows them.

A tag is an architecture and a recipe: `vit_base_patch16_224.augreg_in21k`. Listed are only
checkpoints that `promptax.nn.weights.read` can load. To add one, add a line to `CATALOGUE`; a new
architecture, such as one with LayerScale, has to be computed by `ViT` and known to `naming/` first.
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
    by_hand: bool = False
    """Whether the file is a pickle, which has to be converted with PyTorch before it is read."""

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
        if self.url is None or self.by_hand:
            return "model.safetensors"
        return self.url.rpartition("/")[2]

    def metadata(self) -> Metadata:
        """The facts that the arrays of the file do not show."""
        return Metadata(
            family=self.family,
            activation=self.activation,
            normalisation=self.normalisation,
            licence=self.licence,
            source=self.repository or self.url,
        )


_SIZES = {
    "tiny": (192, 12),
    "small": (384, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "huge": (1280, 32),
}
"""Width and depth of the published sizes."""
_ARCHITECTURE = re.compile(r"(?:vit|deit)_([a-z]+)_patch(\d+)(?:_clip)?_(\d+)\.")


def _checkpoint(tag: str, family: Family, trained_on: str, **facts: Any) -> Pretrained:
    """An entry whose shape is the one that its tag names.

    Args:
        tag, family, trained_on: as in `Pretrained`.
        facts: other fields, where they differ from what most checkpoints have.
    """
    match = _ARCHITECTURE.match(tag)
    assert match is not None, tag
    size, patch, image = match.groups()
    dim, depth = _SIZES[size]
    usual: dict[str, Any] = {"licence": "Apache-2.0"}
    return Pretrained(
        tag=tag,
        family=family,
        trained_on=trained_on,
        dim=dim,
        depth=depth,
        patch=int(patch),
        image=int(image),
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


def _clip(tag: str, trained_on: str, **facts: Any) -> Pretrained:
    """The image tower of a CLIP, as timm hosts it."""
    usual: dict[str, Any] = {"normalisation": "clip"}
    return _checkpoint(tag, "clip", trained_on, **(usual | facts))


_IN21K = "ImageNet-21k"
_FINETUNED = "ImageNet-21k -> 1k"
_NONCOMMERCIAL = "CC-BY-NC-4.0"
_OPENAI = "400 M pairs of OpenAI"
_LAION = "LAION-2B"
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
    # timm has no iBOT: the recipe in this tag is ours, in its style.
    _checkpoint(
        "vit_base_patch16_224.ibot_in1k",
        "ibot",
        "ImageNet-1k",
        normalisation="imagenet",
        url=f"{_IBOT}vitb_16/checkpoint_teacher.pth",
        by_hand=True,
        used_by="HiDe-Prompt",
    ),
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
)
CATALOGUE: Mapping[str, Pretrained] = {entry.tag: entry for entry in _ENTRIES}
"""The checkpoints by their tags."""


UNSUPPORTED: Mapping[str, str] = {
    "dinov2": "a DINOv2, which has LayerScale",
    "dinov3": "a DINOv3, which has rotary positions",
    "deit3": "a DeiT 3, which has LayerScale",
    "distilled": "a distilled DeiT, whose features are two tokens",
    "siglip": "a SigLIP, which has attention pooling instead of a class token",
}
"""Words in tags of well-known families that `ViT` does not compute, and why."""


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
    if not re.match("(vit|deit3?)_", name):
        return
    for word, reason in UNSUPPORTED.items():
        if word in name:
            raise UserError(
                f"'{name}' is {reason}: this library cannot compute it yet. `promptax weights "
                "list` shows what it can."
            )


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """A question with the names that are nearest to `name`, or an empty text if none is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
