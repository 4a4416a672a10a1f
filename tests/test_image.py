"""What becomes of images of every kind, the odd and the damaged ones too."""

import io
import struct
import zlib

import archives
import numpy as np
import pytest
from PIL import Image

from promptax.core.errors import UserError
from promptax.data.image import DamagedImage, decode, read_image


def save(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def declared(width: int, height: int) -> bytes:
    """A PNG file that says to have so many pixels."""
    small = save(Image.new("1", (1, 1)))
    start = small.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", width, height) + small[start + 12 : start + 17]
    checksum = struct.pack(">I", zlib.crc32(header))
    return small[:start] + header + checksum + small[start + len(header) + len(checksum) :]


RED = np.full((4, 6, 3), (200, 10, 30), np.uint8)


def transparent_palette() -> Image.Image:
    image = Image.fromarray(RED).quantize(2)
    image.info["transparency"] = bytes([0, 255])
    return image


def animation() -> bytes:
    frames = [Image.fromarray(RED), Image.fromarray(255 - RED)]
    return save(frames[0], "PNG", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: save(RED),
        lambda: save(Image.fromarray(RED).convert("RGBA")),
        lambda: save(transparent_palette()),
        lambda: save(Image.fromarray(RED).quantize(2), "GIF"),
        animation,
        lambda: save(RED, "WEBP", lossless=True),
        lambda: save(RED, "BMP"),
        lambda: save(RED, "TIFF"),
        lambda: save(RED, "PPM"),
    ],
)
def test_every_kind_of_image_becomes_its_colours(make):
    np.testing.assert_array_equal(decode(make()), RED)


def test_cmyk_grey_sixteen_bits_and_a_single_pixel():
    cmyk = decode(save(Image.fromarray(RED).convert("CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(cmyk.astype(int), RED, atol=6)
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(decode(save(grey)), np.repeat(grey[..., None], 3, 2))
    deep = grey.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(decode(save(deep)), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(
        decode(save(RED[:1, :1]), 3), np.broadcast_to(RED[0, 0], (3, 3, 3))
    )


def test_an_image_that_lies_on_its_side_is_turned_upright():
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees, clockwise.
    np.testing.assert_array_equal(decode(save(pixels, exif=exif)), np.rot90(pixels, -1))


def test_a_large_jpeg_is_decoded_at_a_fraction_that_hardly_differs():
    pixels = np.asarray(Image.fromarray(RED).resize((600, 400))).copy()
    pixels[100:200] = 90
    content = save(pixels, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(decode(content, 16).astype(int), np.asarray(whole), atol=3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: b"", "no image of a known kind"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "no image of a known kind"),
        (lambda: archives.encoded(0, 64)[:-600], "truncated"),
        (lambda: archives.encoded(0, 64, "JPEG")[:-600], "truncated"),
        (lambda: save(np.zeros((3, 3), np.float32), "TIFF"), "no defined range"),
        (lambda: declared(30000, 30000), "too many pixels"),
        (lambda: declared(10000, 9001), "too many pixels"),
    ],
)
def test_images_that_cannot_be_decoded_say_why(make, says, tmp_path):
    content = make()
    with pytest.raises(DamagedImage, match=says):
        decode(content, 8)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.png' .*{says}"):
        read_image(tmp_path / "a.png", 8)
