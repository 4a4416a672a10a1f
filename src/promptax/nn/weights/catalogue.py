"""Public checkpoints of plain ViTs, as far as their addresses are known for certain."""

from typing import NamedTuple

from promptax.nn.weights.about import Family

_GOOGLE = "https://storage.googleapis.com/vit_models/"
_HUB = "https://huggingface.co/"


class Published(NamedTuple):
    """A checkpoint that anybody can download."""

    name: str
    family: Family
    licence: str
    """As its authors or its page on the hub give it."""
    url: str
    """Of the file, or of the page that lists its `model.safetensors`."""


PUBLISHED = (
    Published(
        "ViT-B/16, ImageNet-21k, first release",
        "vit",
        "Apache-2.0",
        f"{_GOOGLE}imagenet21k/ViT-B_16.npz",
    ),
    Published(
        "ViT-B/16, ImageNet-21k, augreg",
        "vit",
        "Apache-2.0",
        f"{_GOOGLE}augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
    ),
    Published(
        "ViT-B/16, ImageNet-21k, augreg, by timm",
        "vit",
        "Apache-2.0",
        f"{_HUB}timm/vit_base_patch16_224.augreg_in21k",
    ),
    Published(
        "DeiT-B/16, ImageNet-1k",
        "deit",
        "Apache-2.0",
        f"{_HUB}timm/deit_base_patch16_224.fb_in1k",
    ),
    Published(
        "MAE ViT-B/16, ImageNet-1k",
        "mae",
        "CC-BY-NC-4.0",
        f"{_HUB}timm/vit_base_patch16_224.mae",
    ),
    Published(
        "DINO ViT-B/16, ImageNet-1k",
        "dino",
        "Apache-2.0",
        f"{_HUB}timm/vit_base_patch16_224.dino",
    ),
    Published(
        "iBOT ViT-B/16, ImageNet-1k (a pickle)",
        "ibot",
        "Apache-2.0",
        "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16/"
        "checkpoint_teacher.pth",
    ),
    Published(
        "CLIP ViT-B/16, by timm",
        "clip",
        "Apache-2.0",
        f"{_HUB}timm/vit_base_patch16_clip_224.openai",
    ),
    Published(
        "CLIP ViT-B/16",
        "clip",
        "MIT",
        f"{_HUB}openai/clip-vit-base-patch16",
    ),
)
