"""Settings of the preparation of images, from raw pixels to the input of the backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from promptax.core.bounds import FINITE, LARGEST, SHARE, require, require_count
from promptax.core.fields import check_fields

Interpolation = Literal["bilinear", "bicubic"]
"""How images are resized; `bicubic` is the kernel of Keys (1981) with a = -0.5, as in Pillow."""
Normalisation = Literal["unit", "symmetric", "imagenet", "clip", "cifar10", "cifar100"]
"""How pixels are scaled for a model: see `STATISTICS`."""
STATISTICS: Mapping[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # As rounded in the code bases that standardise CIFAR (PyCIL, LAMDA-PILOT, SLCA, HiDe-Prompt).
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and standard deviation of each channel: a model gets `(pixel / 255 - mean) / std`."""

LARGEST_IMAGE = 4096
"""Longest side, in pixels, of the image that the backbone gets."""
LARGEST_RESIZE = 8192
"""Longest side, in pixels, of an image before it is cropped."""
_FEW = "at least 0 and at most 100"


def _require_area(name: str, area: tuple[float, float]) -> None:
    require(0 < area[0] <= area[1] <= 1, name, area, "0 < smallest <= largest <= 1")


def _require_aspect(name: str, aspect: tuple[float, float]) -> None:
    within = "0 < smallest <= largest, from 0.001 to 1000"
    require(0.001 <= aspect[0] <= aspect[1] <= 1000, name, aspect, within)


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images beyond crop and flip; all of it is off by default."""

    operations: int = 0
    """RandAugment: number of operations applied to each image (N; published: 2)."""
    magnitude: float = 9.0
    """RandAugment: strength of the operations, from 0 to 10 (M)."""
    brightness: float = 0.0
    """Colour jitter: largest change of the brightness, as a share of it."""
    contrast: float = 0.0
    """Colour jitter: largest change of the contrast, as a share of it."""
    saturation: float = 0.0
    """Colour jitter: largest change of the saturation, as a share of it."""
    hue: float = 0.0
    """Colour jitter: largest rotation of the hue, as a share of the colour circle; at most 0.5."""
    erase: float = 0.0
    """Random erasing: probability that a rectangle of an image is filled with noise."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Random erasing: smallest and largest area of the rectangle, as a share of the image."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Random erasing: smallest and largest height / width of the rectangle."""
    mixup: float = 0.0
    """Mixup within a batch: alpha (common: 0.8). 0: off."""
    cutmix: float = 0.0
    """CutMix within a batch: alpha (published: 1). 0: off. If mixup is on, too, each is used half
    the time."""
    mix_probability: float = 1.0
    """Probability that an image is mixed, if mixup or CutMix is on."""

    def __post_init__(self):
        check_fields(self)
        require(0 <= self.operations <= 100, "RandAugment operations", self.operations, _FEW)
        require(0 <= self.magnitude <= 10, "magnitude", self.magnitude, "between 0 and 10")
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value <= LARGEST, name, value, FINITE)
        require(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5")
        require(0 <= self.erase <= 1, "erase", self.erase, SHARE)
        require(0 <= self.mix_probability <= 1, "mix probability", self.mix_probability, SHARE)
        _require_area("erase area", self.erase_area)
        _require_aspect("erase aspect", self.erase_aspect)

    @property
    def on(self) -> bool:
        """Whether any of it changes an image."""
        jitter = (self.brightness, self.contrast, self.saturation, self.hue)
        return any((self.operations, *jitter, self.erase, self.mixup, self.cutmix))


@dataclass(frozen=True)
class Images:
    """Preparation of images, from raw pixels to the input of the backbone.

    It runs on the device, inside the compiled step.
    """

    size: int = 224
    """Side of the square image that the backbone gets, in pixels."""
    resize: int | None = 256
    """Side of the square that an image is resized to before it is cropped, whatever its aspect
    ratio; with `keep_aspect`, length of its shorter side. None: `size`."""
    keep_aspect: bool = False
    """Keep the aspect ratio: `resize` is then the length of the shorter side, and the aspect of
    random crops is measured in pixels of the original image (as in torchvision)."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of resized and cropped images."""
    antialias: bool = True
    """Widen the kernel of the interpolation where images shrink, as Pillow does. If this is off,
    pixels are skipped, as in TensorFlow's default."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Random crop in training: smallest and largest area, as a share of the image (torchvision's
    default: 0.08 1). 1 1: no crop."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Random crop in training: smallest and largest width / height."""
    crop_redraws: int = 0
    """Random crop in training: how often a crop that does not fit into the image is drawn again
    (torchvision: 9 times) before its longer side is cut to the image."""
    flip: bool = True
    """Mirror half of the training images horizontally."""
    normalisation: Normalisation = "unit"
    """Normalisation of pixels. unit: to [0, 1], as in the published prompt methods; symmetric: to
    [-1, 1], as the ImageNet-21k weights were trained (timm's "Inception" statistics of 0.5);
    imagenet, clip, cifar10, cifar100: by the mean and standard deviation of ImageNet, of OpenAI's
    CLIP or of that data set."""
    augment: Augment = Augment()
    """Augmentation of training images beyond crop and flip."""

    def __post_init__(self):
        check_fields(self)
        require_count("image size", self.size, LARGEST_IMAGE)
        if self.resize is not None:
            within = f"at least {self.size} and at most {LARGEST_RESIZE}"
            require(self.size <= self.resize <= LARGEST_RESIZE, "resize", self.resize, within)
        _require_area("crop area", self.crop_area)
        _require_aspect("crop aspect", self.crop_aspect)
        require(0 <= self.crop_redraws <= 100, "crop redraws", self.crop_redraws, _FEW)

    @property
    def fixed(self) -> bool:
        """Whether images are the same in every epoch of training, and in evaluation."""
        return self.crop_area == (1.0, 1.0) and not self.flip and not self.augment.on

    def for_evaluation(self) -> "Images":
        """The same preparation of test images, with all that concerns training at its default."""
        return Images(
            size=self.size,
            resize=self.resize,
            keep_aspect=self.keep_aspect,
            interpolation=self.interpolation,
            antialias=self.antialias,
            normalisation=self.normalisation,
        )
