"""The masks of COCO instances: polygons and run lengths.

A mask is kept as run lengths: alternating runs of 0 and 1, column by column from left to right.
"""

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Runs = NDArray[np.int64]
"""int64 (runs,): the number of pixels that are 0, then of those that are 1, and so on."""

# Coordinates further out, in image sides, belong to another image and are slow to draw.
_REACH = 2

_ZERO = ord("0")  # a character is 6 bits plus this
_MORE, _SIGN, _VALUE = 0x20, 0x10, 0x1F
_LONGEST = 6  # characters per number: 30 bits, more than any number of pixels


def read_mask(segmentation: object, *, height_px: int, width_px: int) -> Runs:
    """The `segmentation` of an annotation: polygons, or run lengths. Raises ValueError if it is
    neither, or does not belong to an image of that size.
    """
    if isinstance(segmentation, dict):
        size_hw, expected_hw = segmentation.get("size"), [height_px, width_px]
        if size_hw != expected_hw:
            raise ValueError(
                f"expected a mask of `size` {expected_hw}, as the image has, got {size_hw}"
            )
        return read_runs(segmentation.get("counts"), height_px=height_px, width_px=width_px)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            "expected polygons or run lengths, got no `segmentation`; a box alone does not label "
            "pixels"
        )
    if all(isinstance(number, int | float) for number in segmentation):
        raise ValueError("the polygon is a flat list of numbers: put it into a list of polygons")
    polygons = [_polygon(points, height_px, width_px).tolist() for points in segmentation]
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height_px, width_px))
    return read_runs(encoded["counts"], height_px=height_px, width_px=width_px)


def _polygon(points: object, height_px: int, width_px: int) -> NDArray[np.float64]:
    """float64 (2 * points,): x0, y0, x1, y1, ..., in pixels."""
    try:
        xy = np.array(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("a polygon is no list of numbers") from error
    if xy.ndim != 1 or len(xy) < 6 or len(xy) % 2:
        raise ValueError(f"a polygon needs x and y of three points or more, got {xy.size} numbers")
    if not (np.abs(xy) <= _REACH * max(width_px, height_px)).all():
        raise ValueError(
            f"a polygon leads far out of the image, which has {width_px} x {height_px} pixels"
        )
    return xy


def read_runs(counts: object, *, height_px: int, width_px: int) -> Runs:
    """Run lengths from a list, or from the compressed text of pycocotools.

    pycocotools decodes incomplete counts into uninitialised memory; this function rejects them.

    Raises:
        ValueError: the counts are unreadable, or their sum is not the number of pixels.
    """
    runs = _uncompressed(counts) if isinstance(counts, str | bytes) else _listed(counts)
    if (runs < 0).any() or runs.sum() != height_px * width_px:
        raise ValueError(f"the run lengths do not add up to {width_px} x {height_px} pixels")
    return runs


def area_px(runs: Runs) -> int:
    return int(runs[1::2].sum())


def unrolled(runs: Runs) -> NDArray[np.bool_]:
    """Bool (W * H,): the pixels of the mask, column by column."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _listed(counts: object) -> Runs:
    if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise ValueError("the run lengths are neither a list of whole numbers nor a text")
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError as error:
        raise ValueError("the run lengths are too large") from error


def _uncompressed(text: str | bytes) -> Runs:
    """Run lengths from characters of 6 bits: 5 bits of a number, the lowest first, and a bit that
    says whether more follow.

    From the fourth number on, a number is the difference to the run before the previous one.
    Source: `rleFrString` in maskApi.c, https://github.com/cocodataset/cocoapi.
    """
    characters = text.encode("utf-8") if isinstance(text, str) else text
    bits = np.frombuffer(characters, np.uint8).astype(np.int64) - _ZERO
    ends = np.flatnonzero(bits & _MORE == 0)
    lengths = np.diff(ends, prepend=-1)
    whole = ends.size > 0 and ends[-1] == bits.size - 1
    if not whole or lengths.max() > _LONGEST or (bits < 0).any() or (bits > 63).any():
        raise ValueError("the compressed run lengths cannot be read")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs: Runs = np.add.reduceat((bits & _VALUE) << shifts, starts)
    runs -= np.where(bits[ends] & _SIGN, 1 << 5 * lengths, 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
