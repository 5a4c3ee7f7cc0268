"""Encodes a label map as COCO polygons whose corners are corners of pixels. Drawing them restores
every pixel.

In a row of the pixel grid, the corners of a mask form pairs: the two ends of each horizontal edge.
In a column, they are the ends of each vertical edge. An outline alternates between both kinds, so
it is a cycle of horizontal edges. COCO's polygons have no holes, so each hole is cut open: a bridge
leads from the edge above the hole through the mask to the hole, and back on the same path. By the
even-odd rule, which is COCO's, the two directions cancel out.
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
    """The outlines of each class, by class id: one polygon for every connected part of the mask.

    A polygon is [x0, y0, x1, y1, ...] in COCO order. Its corners are corners of pixels: a class
    that fills the image is [0, 0, 0, H, W, H, W, 0]. Parts that touch at a corner are connected, so
    a polygon may touch itself. `pycocotools.mask.frPyObjects` restores exactly the same mask.
    """
    class_ids = list(class_ids)
    bends = _bends(label_map, set(class_ids))
    return {class_id: _polygons(label_map, class_id, bends) for class_id in class_ids}


@dataclass(frozen=True)
class _Bends:
    """The corners of pixels that may be corners of a mask of any class, row by row.

    Attributes:
        x, y: int32 (N,).
        around: (4, N): labels of the pixels to the upper left, upper right, lower left and lower
            right.
    """

    x: Coordinates
    y: Coordinates
    around: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class _Walk:
    """Cycles of horizontal edges with the mask on their left. A vertical edge connects each edge to
    the next.

    Attributes:
        x: the end of each edge, where the vertical edge is.
        y: the row of each edge.
        preceding: the index of the edge before it.
    """

    x: Coordinates
    y: Coordinates
    preceding: Indices


@dataclass(frozen=True)
class _Outlines(_Walk):
    """The outlines of a mask and of its holes, with edges row by row.

    Attributes:
        left: x of the left end of each edge.
        rightwards: whether the edge leads to the right, so that the mask is above it.
    """

    left: Coordinates
    rightwards: Flags


def _polygons(label_map: LabelMap, class_id: int, bends: _Bends) -> list[list[int]]:
    outlines = _outlines(bends, class_id)
    if not len(outlines.x):
        return []
    order, firsts = _cycles(outlines.preceding)
    highest = order[firsts]
    # Above a hole's highest edge there is mask; above a part's, none.
    holes = highest[outlines.rightwards[highest]]
    if not len(holes):
        return _corners(outlines, order, firsts)
    tops = _tops_above(outlines, holes, label_map, class_id)
    opened = _with_holes_cut_open(outlines, holes, tops)
    return _corners(opened, *_cycles(opened.preceding))


def _bends(label_map: LabelMap, class_ids: Set[int]) -> _Bends:
    outside = next(label for label in count() if label not in class_ids)
    wide = label_map.astype(np.min_scalar_type(outside), copy=False)
    labels = np.pad(wide, 1, constant_values=outside)
    stride, labels = labels.shape[1], labels.ravel()
    across = labels[1:] != labels[:-1]
    is_bend = across[:-stride] | across[stride:]  # indexed by the pixel to the upper left
    del across  # frees memory as large as the image
    down = labels[stride:] != labels[:-stride]
    is_bend &= down[:-1] | down[1:]
    upper_left = np.flatnonzero(is_bend)
    y, x = np.divmod(upper_left, stride)
    around = np.stack([labels[upper_left + step] for step in (0, 1, stride, stride + 1)])
    return _Bends(x.astype(np.int32), y.astype(np.int32), around)


def _outlines(bends: _Bends, class_id: int) -> _Outlines:
    """The outlines of one class. A corner at which two pixels touch diagonally counts twice: both
    paths through it turn to the other pixel.
    """
    upper_left, upper_right, lower_left, lower_right = bends.around == class_id
    are_equal = (upper_left == lower_right) & (upper_right == lower_left)
    touching = are_equal & (upper_left != upper_right)
    turns = upper_left ^ upper_right ^ lower_left ^ lower_right
    times = turns.view(np.uint8) + 2 * touching.view(np.uint8)
    corners = np.repeat(np.arange(len(times)), times)  # 2n and 2n + 1 are the ends of edge n
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
    """The other end of the vertical edge at each corner, for corners row by row.

    A corner that counts twice has its left edge first, then its right edge. Where pixels touch from
    the upper left to the lower right, the left edge continues downwards and the right edge upwards.
    So the two change places in the column's order.
    """
    corners = np.arange(len(x))
    pairs = np.flatnonzero(touches_downhill).reshape(-1, 2)
    corners[pairs] = pairs[:, ::-1]
    short_x = x.astype(np.min_scalar_type(x.max(initial=0)))  # 16 bits sort fast
    by_column = corners[np.argsort(short_x, kind="stable")]
    partners = np.empty_like(by_column)
    partners[by_column[::2]], partners[by_column[1::2]] = by_column[1::2], by_column[::2]
    return partners


def _cycles(preceding: Indices) -> tuple[Indices, Indices]:
    """The members of a permutation, cycle by cycle, and the position at which each cycle starts.

    Each cycle starts with its lowest member. All members search for the lowest member before them,
    over twice the distance in every round (pointer jumping).
    """
    # The lower bits are how many steps back it is.
    lowest = np.arange(len(preceding), dtype=np.int64) << 32
    back, steps = preceding, 1
    while True:
        lower = np.minimum(lowest, lowest[back] + steps)
        if np.array_equal(lower, lowest):
            break
        lowest, back, steps = lower, back[back], 2 * steps
    order = np.argsort(lowest)
    return order, np.flatnonzero(lowest[order] & 0xFFFFFFFF == 0)


def _tops_above(outlines: _Outlines, holes: Indices, label_map: LabelMap, class_id: int) -> Indices:
    """The row of the edge directly above the right end of each hole's highest edge."""
    columns, column = np.unique(outlines.x[holes] - 1, return_inverse=True)
    is_ours = label_map.T[columns] == class_id
    begins = is_ours.copy()
    begins[:, 1:] &= ~is_ours[:, :-1]
    tops = np.flatnonzero(begins)
    height_px = len(label_map)
    nearest = np.searchsorted(tops, column * height_px + outlines.y[holes] - 1, side="right") - 1
    return tops[nearest] % height_px


def _with_holes_cut_open(outlines: _Outlines, holes: Indices, tops: Indices) -> _Walk:
    """Joins each part of the mask and its holes, given by their highest edges, into one cycle.

    Bridges lead from the edges above, in the rows `tops`, to the right ends of the holes. They cut
    the edges above into pieces. An edge keeps its index for its last piece. Every other piece is a
    new edge and leads to a hole.
    """
    x, stride = outlines.x[holes], np.int64(outlines.x.max() + 1)
    edges = outlines.y * stride + outlines.left
    cut = np.searchsorted(edges, tops * stride + x - 1, side="right") - 1
    along = np.lexsort((-x, cut))  # these edges lead to the left
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
    has_length = x != np.roll(x, 1)  # if an edge is cut at its start, its first piece has no length
    has_length[firsts] = True
    x, y, firsts = x[has_length], y[has_length], np.cumsum(has_length)[firsts] - 1
    ends = np.append(firsts[1:], len(x))
    next_y = np.roll(y, -1)
    next_y[ends - 1] = y[firsts]
    corners = np.stack([x, y, x, next_y], axis=1)
    return [
        corners[first:end].ravel().tolist()
        for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)
    ]
