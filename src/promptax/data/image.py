"""Image files."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from promptax.errors import UserError


def read_image(path: Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Read a file of any format that Pillow knows, upright, resized to a square (bilinear,
    aspect ignored, as in training).

    Raises `UserError` for a file that is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"image '{path}' not found.") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"image '{path}' cannot be read: {str(error) or 'damaged'}.") from None
    except Image.DecompressionBombError:
        raise UserError(f"image '{path}' has too many pixels.") from None
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))
