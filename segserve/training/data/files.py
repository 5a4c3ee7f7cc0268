"""Image and label files, read with errors that name the file."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.decode.image import decode_image, decoded_size
from ...runtime.encode.mask import LabelMap
from ...runtime.errors import SegserveError
from .errors import DataError

MAX_PIXELS = 2**26
"""Largest width times height of an image or a label map: above what cameras give, below what fills
the memory.
"""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(
    ">8x4x4sIIBB"
)  # of a PNG file: signature, length, IHDR, width, height, bit depth, colour type
_GREY, _RGB, _PALETTE = 0, 2, 3
_COLOR_TYPES = {
    _GREY: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    4: "grey with alpha",
    6: "RGB with alpha",
}

Read = TypeVar("Read")


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB, upright as when it is served.

    Raises:
        DataError: the image is missing, or cannot be decoded whole.
    """
    return _decoded(path, lambda content: decode_image(content, max_pixels=MAX_PIXELS))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image; errors as in `read_image`, which does more work."""
    return _decoded(path, lambda content: decoded_size(content, max_pixels=MAX_PIXELS))


def _decoded(path: Path, decode: Callable[[bytes], Read]) -> Read:
    try:
        return decode(read_bytes(path))
    except SegserveError as error:
        raise DataError(f"{path}: {error}") from error


def read_label_png(path: Path) -> LabelMap:
    """uint8 (H, W), the pixel values of a grey or palette PNG as they are stored.

    Raises:
        DataError: the file is missing, cannot be decoded, or is a PNG whose values are not stored
            in one byte.
    """
    content = read_bytes(path)
    depth, color_type = _png_type(path, content)
    # A palette's indices come out as they are at any depth. Grey of 2 or 4 bits does not: Pillow
    # stretches it to 255.
    if color_type != _PALETTE and (color_type, depth) != (_GREY, 8):
        raise DataError(
            f"{path}: expected an 8-bit grey or palette PNG whose pixel values are class ids, "
            f"got {depth}-bit {_COLOR_TYPES.get(color_type, 'colours')}"
        )
    return _png_pixels(path, content)


def read_rgb_png(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of an RGB PNG; errors as in `read_label_png`."""
    content = read_bytes(path)
    depth, color_type = _png_type(path, content)
    if (color_type, depth) != (_RGB, 8):
        raise DataError(
            f"{path}: expected an 8-bit RGB PNG, got {depth}-bit "
            f"{_COLOR_TYPES.get(color_type, 'colours')}"
        )
    return _png_pixels(path, content)


def _png_type(path: Path, content: bytes) -> tuple[int, int]:
    """Bit depth and colour type."""
    if not content.startswith(_SIGNATURE) or len(content) < _HEADER.size:
        raise DataError(f"{path}: is no PNG file")
    _, width_px, height_px, depth, color_type = _HEADER.unpack_from(content)
    if width_px * height_px > MAX_PIXELS:
        raise DataError(f"{path}: has {width_px} x {height_px} pixels, the limit is {MAX_PIXELS}")
    return depth, color_type


def _png_pixels(path: Path, content: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            return np.array(picture, dtype=np.uint8)
    except Exception as error:  # Pillow raises about anything on broken files
        raise DataError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
