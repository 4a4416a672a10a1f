"""Image files, and what becomes of the odd ones."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from promptax.core.errors import UserError
from promptax.core.files import read_bytes

KINDS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""What is decoded. Pillow knows more, some of which (EPS) start other programs."""

MOST_PIXELS = 90_000_000
"""Above this an image is taken for a decompression bomb."""


class DamagedImage(ValueError):
    """An image that cannot be decoded, and why."""


def read_image(path: Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Read an image file as `decode` does, resized to a square.

    Raises `UserError` for a file that is missing or cannot be decoded.
    """
    try:
        return decode(read_bytes(path, "image"), side)
    except DamagedImage as error:
        raise UserError(f"image '{path}' {error}.") from None


def decode(content: bytes, side: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """An encoded image as RGB pixels, upright, resized to a square (bilinear, aspect ignored)
    unless `side` is None.

    Of an animation the first frame; transparency is ignored, as TensorFlow and torchvision do;
    of 16 bits the higher 8.

    Raises `DamagedImage` for anything that is no whole image of a kind in `KINDS`, that has
    more than `MOST_PIXELS` pixels, or whose values have no defined range (32-bit TIFF).
    """
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise DamagedImage("has too many pixels")
            if side is not None:
                # Decoding a large JPEG at a fraction that is still twice the size asked for
                # is what Pillow's own thumbnails do.
                file.draft(None, (2 * side, 2 * side))
            return np.asarray(_resized(_rgb(ImageOps.exif_transpose(file)), side))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DamagedImage("has too many pixels") from None
    except DamagedImage:
        raise
    except Exception as error:
        # Pillow lets through whatever its many parsers raise on a damaged file.
        raise DamagedImage(f"cannot be read: {_reason(error)}") from None


def resize(
    pixels: UInt8[np.ndarray, "height width channel"], side: int | None
) -> UInt8[np.ndarray, "tall wide channel"]:
    """Pixels (1 or 3 channels) resized to a square as `decode` does."""
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    resized = np.asarray(_resized(image, side))
    return resized[..., None] if grey else resized


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise DamagedImage(f"has pixels of mode {image.mode}, which have no defined range")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        # Pillow warns where a transparent palette becomes RGB in one go.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, side: int | None) -> Image.Image:
    return image if side is None else image.resize((side, side), Image.Resampling.BILINEAR)


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:
        return "no image of a known kind"
    return text.splitlines()[0] if text else type(error).__name__
