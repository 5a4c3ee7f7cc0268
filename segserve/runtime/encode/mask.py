"""Encodes a label map. All encodings of one image hold exactly the same mask."""

import io
from collections.abc import Iterable
from typing import TypedDict
from zlib import Z_RLE

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

LabelMap = NDArray[np.uint8]
"""uint8 (H, W): the class id of every pixel."""


def encode_png(label_map: LabelMap, palette: bytes) -> bytes:
    """An indexed PNG: pixel value = class id, palette = class colours (the VOC convention)."""
    image = Image.fromarray(label_map)
    image.putpalette(palette)
    return _saved(image, "PNG", compress_level=1)


def encode_grey_png(values: NDArray[np.uint8]) -> bytes:
    """A PNG with 8 bits per pixel, from uint8 (H, W)."""
    # Z_RLE: smaller, and as fast.
    return _saved(Image.fromarray(values), "PNG", compress_level=1, compress_type=Z_RLE)


def encode_npy(label_map: LabelMap) -> bytes:
    """A NumPy file that `numpy.load` reads without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, label_map, allow_pickle=False)
    return buffer.getvalue()


def encode_jpeg(image: Image.Image) -> bytes:
    """A JPEG for viewing."""
    return _saved(image, "JPEG", quality=90)


def _saved(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def dense_json_bytes(pixels_by_class: dict[int, int], height_px: int) -> int:
    """The size of the rows of class ids as JSON, in bytes, computed without building them."""
    digits = sum(len(str(class_id)) * pixels for class_id, pixels in pixels_by_class.items())
    pixels = sum(pixels_by_class.values())
    # One comma or closing bracket after every pixel, one opening bracket per row, one comma between
    # rows, two brackets outside.
    return digits + pixels + height_px + (height_px - 1) + 2


class Rle(TypedDict):
    """`size`: [height, width] in pixels. `counts`: run lengths down the columns, as ASCII."""

    size: list[int]
    counts: str


def encode_rle(label_map: LabelMap, class_ids: Iterable[int]) -> dict[int, Rle]:
    """The mask of each class, by class id.

    Args:
        label_map: uint8 (H, W).
        class_ids: the classes to encode; a class that the image does not contain gets an empty
            mask.
    """
    by_column = np.asfortranarray(label_map)
    masks = {}
    for class_id in class_ids:
        rle = coco_mask.encode((by_column == class_id).view(np.uint8))
        masks[class_id] = Rle(size=list(label_map.shape), counts=rle["counts"].decode("ascii"))
    return masks
