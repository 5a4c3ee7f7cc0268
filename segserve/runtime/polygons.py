"""A label map as COCO polygons whose corners are corners of pixels: drawn again, they give every pixel back.

The corners of a mask along a row of the pixels' grid are, two by two, the ends of its horizontal edges; down a column,
those of its vertical ones. An outline goes along one of either in turn, so it is a cycle of horizontal edges. COCO's
polygons know no holes, hence each hole is cut open: a bridge leads from the edge above it through the mask to the hole,
and back on the same line. Filled by the even-odd rule, which is COCO's, the two ways cancel out.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from .mask import LabelMap

Indices = NDArray[np.intp]
Coordinates = NDArray[np.int32]
Flags = NDArray[np.bool_]


def encode_polygons(label_map: LabelMap, class_ids: Iterable[int]) -> dict[int, list[list[int]]]:
    """The outlines of each of the classes, by class id: one polygon for every part of the mask that hangs together.

    A polygon is [x0, y0, x1, y1, ...] in COCO order, its corners those of pixels: a class that fills the image is
    [0, 0, 0, H, W, H, W, 0]. Parts that touch at a corner hang together, so a polygon may touch itself.
    `pycocotools.mask.frPyObjects` gives the very mask back.

    Args:
        label_map: uint8 (H, W).
        class_ids: those to encode; one that the image does not hold gets no polygon.
    """
    class_ids = list(class_ids)
    bends = _bends(label_map, set(class_ids))
    return {class_id: _polygons(label_map, class_id, bends) for class_id in class_ids}


@dataclass(frozen=True)
class _Bends:
    """The corners of pixels that may be corners of a mask, whatever its class, row by row.

    Attributes:
        x, y: int32 (N,).
        around: (4, N): labels of the pixels to the upper left, upper right, lower left and lower right.
    """

    x: Coordinates
    y: Coordinates
    around: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class _Walk:
    """Cycles of horizontal edges with the mask on their left, a vertical edge from each to the next.

    Attributes:
        x: where each ends, and the vertical edge stands.
        y: the row of each.
        preceding: index of the one before it.
    """

    x: Coordinates
    y: Coordinates
    preceding: Indices


@dataclass(frozen=True)
class _Outlines(_Walk):
    """Those of a mask and of its holes, edges row by row.

    Attributes:
        left: x of the left end of each.
        rightwards: whether it leads away from there: the mask is above it.
    """

    left: Coordinates
    rightwards: Flags


def _polygons(label_map: LabelMap, class_id: int, bends: _Bends) -> list[list[int]]:
    outlines = _outlines(bends, class_id)
    if not len(outlines.x):
        return []
    order, firsts = _cycles(outlines.preceding)
    highest = order[firsts]
    holes = highest[outlines.rightwards[highest]]  # there is mask above a hole, and none above a part of it
    if not len(holes):
        return _corners(outlines, order, firsts)
    opened = _with_holes_cut_open(outlines, holes, _tops_above(outlines, holes, label_map, class_id))
    return _corners(opened, *_cycles(opened.preceding))


def _bends(label_map: LabelMap, class_ids: Set[int]) -> _Bends:
    outside = next(label for label in count() if label not in class_ids)
    labels = np.pad(label_map.astype(np.min_scalar_type(outside), copy=False), 1, constant_values=outside)
    stride, labels = labels.shape[1], labels.ravel()
    across = labels[1:] != labels[:-1]
    is_bend = across[:-stride] | across[stride:]  # by the pixel to the upper left
    del across  # as large as the image
    down = labels[stride:] != labels[:-stride]
    is_bend &= down[:-1] | down[1:]
    upper_left = np.flatnonzero(is_bend)
    y, x = np.divmod(upper_left, stride)
    around = np.stack([labels[upper_left + step] for step in (0, 1, stride, stride + 1)])
    return _Bends(x.astype(np.int32), y.astype(np.int32), around)


def _outlines(bends: _Bends, class_id: int) -> _Outlines:
    """Those of one class. A corner where pixels touch counts twice: both ways through it turn to the other pixel."""
    upper_left, upper_right, lower_left, lower_right = bends.around == class_id
    touching = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    times = (upper_left ^ upper_right ^ lower_left ^ lower_right).view(np.uint8) + 2 * touching.view(np.uint8)
    corners = np.repeat(np.arange(len(times)), times)  # those at 2n and 2n + 1 are the ends of edge n
    x, y = bends.x[corners], bends.y[corners]
    vertically = _partners_in_columns(x, (touching & upper_left)[corners])
    left_ends = np.arange(0, len(corners), 2)
    rightwards = upper_right[corners[::2]]
    return _Outlines(
        x=x[left_ends + rightwards],
        y=y[::2],
        preceding=vertically[left_ends + ~rightwards] // 2,
        left=x[::2],
        rightwards=rightwards,
    )


def _partners_in_columns(x: Coordinates, touches_downhill: Flags) -> Indices:
    """The other end of the vertical edge at each corner, of corners row by row.

    One that counts twice has its left edge first, then its right one. Where pixels touch from the upper left to the
    lower right, the left edge goes on downwards and the right one upwards: down the column, the two change places.
    """
    corners = np.arange(len(x))
    pairs = np.flatnonzero(touches_downhill).reshape(-1, 2)
    corners[pairs] = pairs[:, ::-1]
    by_column = corners[np.argsort(x.astype(np.min_scalar_type(x.max(initial=0))), kind="stable")]  # 16 bits sort fast
    partners = np.empty_like(by_column)
    partners[by_column[::2]], partners[by_column[1::2]] = by_column[1::2], by_column[::2]
    return partners


def _cycles(preceding: Indices) -> tuple[Indices, Indices]:
    """The members of a permutation cycle by cycle, each from its lowest one on, and where in these each cycle begins.

    All members look for the lowest one before them, over twice the distance in every round (pointer jumping).
    """
    lowest = np.arange(len(preceding), dtype=np.int64) << 32  # and in the lower bits, how many steps back it is
    back, steps = preceding, 1
    while True:
        lower = np.minimum(lowest, lowest[back] + steps)
        if np.array_equal(lower, lowest):
            break
        lowest, back, steps = lower, back[back], 2 * steps
    order = np.argsort(lowest)
    return order, np.flatnonzero(lowest[order] & 0xFFFFFFFF == 0)


def _tops_above(outlines: _Outlines, holes: Indices, label_map: LabelMap, class_id: int) -> Indices:
    """The row of the edge straight above the right end of each hole's highest edge."""
    columns, column = np.unique(outlines.x[holes] - 1, return_inverse=True)
    is_ours = label_map.T[columns] == class_id
    begins = is_ours.copy()
    begins[:, 1:] &= ~is_ours[:, :-1]
    tops = np.flatnonzero(begins)
    height_px = len(label_map)
    nearest = np.searchsorted(tops, column * height_px + outlines.y[holes] - 1, side="right") - 1
    return tops[nearest] % height_px


def _with_holes_cut_open(outlines: _Outlines, holes: Indices, tops: Indices) -> _Walk:
    """One cycle for each part of the mask: bridges cut the edges above holes in pieces, and join these to the holes.

    An edge keeps its index for its last piece. Every other piece is an edge more, and leads to a hole.

    Args:
        outlines: of the mask.
        holes: the highest edge of each hole; the bridge leads to its right end.
        tops: the row of the edge above.
    """
    x, stride = outlines.x[holes], np.int64(outlines.x.max() + 1)
    cut = np.searchsorted(outlines.y * stride + outlines.left, tops * stride + x - 1, side="right") - 1
    along = np.lexsort((-x, cut))  # they lead to the left
    holes, cut, x = holes[along], cut[along], x[along]
    is_first, is_last = np.diff(cut, prepend=-1) != 0, np.diff(cut, append=-1) != 0
    instead = np.arange(len(outlines.x))
    instead[holes] = len(instead) + np.arange(len(holes))
    preceding = instead[outlines.preceding]
    before_pieces = np.where(is_first, preceding[cut], np.roll(holes, 1))
    preceding[cut[is_last]] = holes[is_last]
    return _Walk(
        x=np.concatenate([outlines.x, x]),
        y=np.concatenate([outlines.y, outlines.y[cut]]),
        preceding=np.concatenate([preceding, before_pieces]),
    )


def _corners(walk: _Walk, order: Indices, firsts: Indices) -> list[list[int]]:
    x, y = walk.x[order], walk.y[order]
    has_length = x != np.roll(x, 1)  # of an edge that is cut where it begins, the first piece has none
    has_length[firsts] = True
    x, y, firsts = x[has_length], y[has_length], np.cumsum(has_length)[firsts] - 1
    ends = np.append(firsts[1:], len(x))
    next_y = np.roll(y, -1)
    next_y[ends - 1] = y[firsts]
    corners = np.stack([x, y, x, next_y], axis=1)
    return [corners[first:end].ravel().tolist() for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]
