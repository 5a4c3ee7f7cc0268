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

    The image is read once for all classes: the runs of any one class are found, then assigned to
        their classes.

    Args:
        label_map: uint8 (H, W).
        class_ids: the classes to encode; a class that the image does not contain gets an empty
            mask.
    """
    height_px, width_px = label_map.shape
    x, y = _run_starts(label_map)
    edges = np.append(x * height_px + y, label_map.size)
    class_of_run = label_map[y, x]
    masks = {}
    for class_id in class_ids:
        ours = np.flatnonzero(class_of_run == class_id)
        counts = _counts(edges[ours], edges[ours + 1], label_map.size)
        rle = coco_mask.frPyObjects(
            {"size": [height_px, width_px], "counts": counts}, height_px, width_px
        )
        masks[class_id] = Rle(size=[height_px, width_px], counts=rle["counts"].decode("ascii"))
    return masks


def _run_starts(label_map: LabelMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The x and y of the pixels at which runs down the columns start.

    They are found along the rows, which is the memory order, and then sorted into the order of the
    columns.
    """
    tops = np.flatnonzero(label_map[0, 1:] != label_map[-1, :-1]) + 1
    y, x = np.divmod(np.flatnonzero(label_map[1:] != label_map[:-1]), label_map.shape[1])
    x = np.concatenate([[0], tops, x])
    y = np.concatenate([np.zeros(len(tops) + 1, np.int64), y + 1])
    # 16 bits use radix sort.
    by_column = np.argsort(x.astype(np.min_scalar_type(x.max())), kind="stable")
    return x[by_column], y[by_column]


def _counts(starts: NDArray[np.int64], ends: NDArray[np.int64], pixels: int) -> list[int]:
    """The lengths of alternating runs of 0 and 1. The first is of 0, even without pixels."""
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[:-1:2], edges[1::2], edges[-1] = starts, ends, pixels
    counts: list[int] = np.diff(edges, prepend=0).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]
