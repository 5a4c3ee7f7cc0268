"""The encodings of a label map. All of one image hold the same mask, bit for bit."""

import io
from zlib import Z_RLE

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LabelMap = NDArray[np.uint8]
"""uint8 (H, W): the class id of every pixel."""


def encode_png(label_map: LabelMap, palette: bytes) -> bytes:
    """An indexed PNG: pixel value = class id, palette = class colours (the VOC convention)."""
    image = Image.fromarray(label_map)
    image.putpalette(palette)
    return _saved(image, "PNG", compress_level=1)


def encode_grey_png(values: NDArray[np.uint8]) -> bytes:
    """A PNG of 8 bits a pixel, from uint8 (H, W)."""
    return _saved(Image.fromarray(values), "PNG", compress_level=1, compress_type=Z_RLE)  # smaller, and as quick


def encode_npy(label_map: LabelMap) -> bytes:
    """A NumPy file that `numpy.load` reads without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, label_map, allow_pickle=False)
    return buffer.getvalue()


def encode_jpeg(image: Image.Image) -> bytes:
    """A picture to look at."""
    return _saved(image, "JPEG", quality=90)


def _saved(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def dense_json_bytes(pixels_by_class: dict[int, int], height_px: int) -> int:
    """How many bytes the rows of class ids take as JSON, without making them."""
    digits = sum(len(str(class_id)) * pixels for class_id, pixels in pixels_by_class.items())
    pixels = sum(pixels_by_class.values())
    # A comma or a closing bracket behind every pixel, an opening bracket a row, a comma between rows, two outside.
    return digits + pixels + height_px + (height_px - 1) + 2
