"""A label map as COCO polygons whose corners are corners of pixels: drawn again, they give every pixel back.

OpenCV follows the borders of a mask from pixel to pixel; the sides of pixels that a border is made of follow from its
path. COCO's polygons know no holes, so each hole is cut open: a bridge leads from the outline through the mask to the
hole, and back on the same line. Filled by the even-odd rule, which is COCO's, the two ways cancel out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import cv2
import numpy as np
from numpy.typing import NDArray

from .mask import LabelMap

Points = NDArray[np.int32]
"""int32 (N, 2): x, y. Corners of pixels where not said otherwise: pixel (0, 0) lies between (0, 0) and (1, 1)."""

Indices = NDArray[np.intp]

# The sides of a pixel as they follow one another around it, the pixel on the left: right, upper, left, lower.
_UPPER, _LOWER = 1, 3
_SIDE_BEGINS = np.array([(1, 1), (1, 0), (0, 0), (0, 1)], np.int32)  # x, y within the pixel

# Steps to the neighbours in 0..7, counter-clockwise from the right, by y + 1 and x + 1; -1 is no step.
_STEPS = np.array([(3, 2, 1), (4, -1, 0), (5, 6, 7)])


def encode_polygons(label_map: LabelMap, class_ids: Iterable[int]) -> dict[int, list[list[int]]]:
    """The outlines of each of the classes, by class id: one polygon for every part of the mask that hangs together.

    A polygon is [x0, y0, x1, y1, ...] in COCO order, its corners those of pixels: a class that fills the image is
    [0, 0, 0, H, W, H, W, 0]. Parts that touch at a corner hang together, so a polygon may touch itself.
    `pycocotools.mask.frPyObjects` gives the very mask back.

    Args:
        label_map: uint8 (H, W).
        class_ids: those to encode; one that the image does not hold gets no polygon.
    """
    return {class_id: _polygons((label_map == class_id).view(np.uint8)) for class_id in class_ids}


def _polygons(mask: NDArray[np.uint8]) -> list[list[int]]:
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    borders = _borders([np.asarray(contour[:, 0], np.int32) for contour in contours])
    is_hole = hierarchy[0, :, 3] >= 0
    outlines = _with_holes_cut_open(borders, is_hole) if is_hole.any() else borders.by_contour()
    return [polygon.ravel().tolist() for polygon in _without_straight_points(outlines)]


@dataclass(frozen=True)
class _Borders:
    """The sides of pixels that closed contours are made of, contour by contour, the mask on the left of them.

    Attributes:
        begins: where each side begins; it ends where the next one of its contour does.
        sides: which side of its pixel each is.
        firsts: index of the first side of each contour, and of the end of the last.
    """

    begins: Points
    sides: Indices
    firsts: Indices

    def by_contour(self) -> list[Points]:
        return np.split(self.begins, self.firsts[1:-1])


def _borders(contours: Sequence[Points]) -> _Borders:
    """The borders that the contours, paths over pixels, go along.

    From each pixel a path goes on to the first pixel of the mask, looking around counter-clockwise from where it came:
    the sides that are passed over in looking are border.
    """
    pixels = np.concatenate(contours)
    firsts, following = _closed(contours)
    towards = pixels[following] - pixels
    step = _STEPS[towards[:, 1] + 1, towards[:, 0] + 1]
    came_from = np.empty_like(step)
    came_from[following] = np.where(step < 0, 7, (step + 4) % 8)
    turned = np.where(step < 0, 8, (step - came_from - 1) % 8 + 1)  # a pixel without neighbours is border all around
    before = came_from // 2  # a step that leads over side n is 2n
    count = (came_from + turned - 1) // 2 - before
    ends = np.cumsum(count)
    pixel = np.repeat(np.arange(len(pixels)), count)
    sides = (before[pixel] + 1 + np.arange(len(pixel)) - (ends - count)[pixel]) % 4
    return _Borders(pixels[pixel] + _SIDE_BEGINS[sides], sides, np.concatenate([[0], ends])[firsts])


def _closed(paths: Sequence[Points]) -> tuple[Indices, Indices]:
    """Of closed paths one behind the other: where each begins and the last one ends, and each point's next point."""
    firsts = np.cumsum([0, *map(len, paths)])
    following = np.arange(1, firsts[-1] + 1)
    following[firsts[1:] - 1] = firsts[:-1]
    return firsts, following


def _with_holes_cut_open(borders: _Borders, is_hole: NDArray[np.bool_]) -> list[Points]:
    """The outer contours, with their holes worked in.

    A hole hangs by its bridge from the border above it, which may be that of another hole. The lowest ones are worked
    in first, so that each takes along those that hang from it.
    """
    contours, firsts = borders.by_contour(), borders.firsts
    holes = np.flatnonzero(is_hole)
    tops = _highest_sides(borders, holes)
    hooks = _sides_above(borders, tops)
    owners = np.searchsorted(firsts, hooks, side="right") - 1
    hanging: dict[int, list[tuple[int, Points]]] = defaultdict(list)
    for index in np.argsort(-borders.begins[tops, 1]):
        hole, hook, owner = int(holes[index]), int(hooks[index]), int(owners[index])
        opened = _spliced(contours[hole], hanging.pop(hole, []), start=int(tops[index] + 1 - firsts[hole]))
        bridged = np.concatenate([borders.begins[hook, None], opened, opened[:1]])
        hanging[owner].append((int(hook - firsts[owner]), bridged))
    return [_spliced(contours[outer], hanging.pop(outer, [])) for outer in np.flatnonzero(~is_hole).tolist()]


def _highest_sides(borders: _Borders, holes: Indices) -> Indices:
    """Of each of the holes, a side that bounds it from above."""
    height_of_lower = np.where(borders.sides == _LOWER, borders.begins[:, 1], np.iinfo(np.int32).max)
    ranges = zip(borders.firsts[holes], borders.firsts[holes + 1], strict=True)
    return np.array([first + height_of_lower[first:end].argmin() for first, end in ranges])


def _sides_above(borders: _Borders, lower: Indices) -> Indices:
    """For each of these lower sides of pixels, the nearest upper side straight above it."""
    x, y = borders.begins.T.astype(np.int64)
    stride = y.max() + 1  # down the columns: a key for every corner
    upper = np.flatnonzero(borders.sides == _UPPER)
    keys = x[upper] * stride + y[upper]
    order = np.argsort(keys)
    right_ends = (x[lower] + 1) * stride + y[lower]  # where the upper side begins
    nearest: Indices = upper[order[np.searchsorted(keys[order], right_ends) - 1]]
    return nearest


def _spliced(contour: Points, insertions: list[tuple[int, Points]], start: int = 0) -> Points:
    """The contour from its point `start` on, with paths inserted before points of it."""
    pieces, done = [], 0
    ahead = sorted((((place - start) % len(contour), path) for place, path in insertions), key=itemgetter(0))
    rotated = np.roll(contour, -start, axis=0)
    for place, path in ahead:
        pieces += [rotated[done:place], path]
        done = place
    return np.concatenate([*pieces, rotated[done:]])


def _without_straight_points(outlines: Sequence[Points]) -> list[Points]:
    """The same closed outlines by their corners alone."""
    points = np.concatenate(outlines)
    firsts, following = _closed(outlines)
    leaving = np.sign(points[following] - points)
    arriving = np.empty_like(leaving)
    arriving[following] = leaving
    turns = (leaving != arriving).any(axis=1)
    corners_before = np.concatenate([[0], np.cumsum(turns)])
    return np.split(points[turns], corners_before[firsts[1:-1]])
