"""Decoding of image files, including unusual and damaged ones."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from promptax.core.errors import UserError
from promptax.core.files import read_bytes
from promptax.core.limits import FILE, PIXELS
from promptax.core.settings import Interpolation

KINDS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""The kinds of files that are decoded. Pillow knows more, and starts other programs for some of
them (EPS)."""


DECODED_AT_ONCE = 2**26
"""Pixels that all threads together decode at a time; a larger image is decoded alone. While it is
converted, turned and resized, a pixel takes up to 12 bytes."""


_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class DamagedImage(ValueError):
    """An image cannot be decoded. The message continues a sentence that starts with its name."""


def read_image(
    path: Path,
    side: int,
    *,
    keep_aspect: bool = False,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "side side 3"]:
    """Read an image file as `decode` does, resized to a square.

    Raises `UserError` for a file that is missing or cannot be decoded.
    """
    content = read_bytes(path, "image", FILE)
    try:
        return decode(content, side, keep_aspect=keep_aspect, interpolation=interpolation)
    except DamagedImage as error:
        raise UserError(f"image '{path}' {error}.") from None


def decode(
    content: bytes,
    side: int | None = None,
    *,
    keep_aspect: bool = False,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image to RGB pixels, turned upright by its EXIF data.

    An animation gives its first frame, transparency is ignored (as in TensorFlow and torchvision),
    and of 16 bits the higher 8 are kept.

    Args:
        content: The bytes of the file.
        side: Of the square that it is resized to, in pixels (antialiased); None: as it is.
        keep_aspect: Resize the shorter side to `side` and keep the square in the centre, as
            torchvision's `Resize` and `CenterCrop` do, instead of stretching the image.
        interpolation: Of the resizing.

    Returns:
        The pixels.

    Raises:
        DamagedImage: For anything but a whole image of one of `KINDS`, for more than
            `limits.PIXELS` pixels, and for values that have no defined range (32-bit TIFF).
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        # Pillow has a limit of its own, which has to grow with ours.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, PIXELS.value)
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as file:
            if file.width * file.height > PIXELS.value:
                raise DamagedImage(f"has too many pixels: more than {PIXELS} ({PIXELS.variable})")
            if side is not None:
                # Decode a large JPEG at a fraction of its size, which is several times as fast.
                # Like Pillow's thumbnails, ask for twice the final size, for quality.
                file.draft(None, (2 * side, 2 * side))
            with _ROOM.taken(file.width * file.height):
                image = _rgb(ImageOps.exif_transpose(file))
                if side is not None:
                    image = _square(image, side, keep_aspect, interpolation)
                return np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DamagedImage("has too many pixels") from None
    except DamagedImage:
        raise
    except Exception as error:
        # Pillow documents no exceptions for damaged files: its parsers raise many different ones.
        raise DamagedImage(f"cannot be read: {_reason(error)}") from None


class _Room:
    """Bounds the memory of several threads that decode images."""

    def __init__(self):
        self._free = threading.Condition()
        self._taken = 0

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and take it until the block ends."""
        with self._free:
            self._free.wait_for(lambda: not self._taken or self._taken + pixels <= DECODED_AT_ONCE)
            self._taken += pixels
        try:
            yield
        finally:
            with self._free:
                self._taken -= pixels
                self._free.notify_all()


_ROOM = _Room()


def resize(
    pixels: UInt8[np.ndarray, "height width channel"],
    side: int | None,
    *,
    keep_aspect: bool = False,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "tall wide channel"]:
    """Resize pixels with 1 or 3 channels to a square, as `decode` does.

    They stay as they are if `side` is None.
    """
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    is_grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    resized = np.asarray(_square(image, side, keep_aspect, interpolation))
    return resized[..., None] if is_grey else resized


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise DamagedImage(f"has pixels of mode {image.mode}, which have no defined range")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        # In one step, Pillow would warn about palettes with transparent colours.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _square(
    image: Image.Image, side: int, keep_aspect: bool, interpolation: Interpolation
) -> Image.Image:
    if not keep_aspect:
        return image.resize((side, side), _RESAMPLING[interpolation])
    shorter = min(image.size)
    # torchvision rounds the longer side down, and the corner of the square to the nearest pixel.
    width = side * image.width // shorter
    height = side * image.height // shorter
    resized = image.resize((width, height), _RESAMPLING[interpolation])
    left = round((width - side) / 2)
    top = round((height - side) / 2)
    return resized.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify" in text:
        return "no image of a known kind"
    return text.splitlines()[0] if text else type(error).__name__
