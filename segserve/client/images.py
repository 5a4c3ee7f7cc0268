"""Converts every supported image input to the bytes of an image file."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
)
"""A path, the bytes of an image file, a PIL image, or an array: uint8 (H, W, 3), RGB, or uint8 (H,
W), grey.
"""

_PNG_MODES = ("1", "L", "P", "RGB", "I;16")  # the server converts these to the same RGB
_WITHOUT_RANGE = ("I", "F")


def as_image_file(image: ImageInput) -> bytes:
    """Returns the bytes of an image file.

    The bytes of a file stay unchanged. A PIL image or an array is encoded as PNG, without loss. The
    EXIF orientation of a PIL image is applied, so that the result is the same as for its file.

    Raises:
        OSError: the file cannot be read.
        TypeError: the input is not an `ImageInput`.
        ValueError: the array has another shape or dtype, or the pixels have no fixed range.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _as_png(_picture_of(image))
    if isinstance(image, Image.Image):
        return _as_png(ImageOps.exif_transpose(image))
    raise TypeError(
        f"expected a path, bytes, a PIL image or a NumPy array, got {type(image).__name__}"
    )


def _picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise ValueError(
            f"expected uint8 (H, W, 3), RGB, or (H, W), grey, got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _as_png(picture: Image.Image) -> bytes:
    if picture.mode in _WITHOUT_RANGE:
        raise ValueError(
            f"pixels of type {picture.mode} (32 bits) have no fixed range: convert the picture to "
            "RGB"
        )
    if picture.mode not in _PNG_MODES and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(
        buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE
    )  # for photographs: smaller and faster
    return buffer.getvalue()
