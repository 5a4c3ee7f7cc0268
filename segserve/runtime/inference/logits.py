"""What happens to logits before a class is chosen: the tiles of a scale are blended, scales are
averaged, and the result is resized to the image's size, one candidate class at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, as_like, empty, logsumexp, namespace, on_host, softmax, zeros
from .plan import TileAxis, TiledScale

# Fraction of a tile's side, at either end: a quarter of the smallest overlap. Logits there depend
# on the tile's border and not on the image.
_MARGIN = 1 / 12

_TINY = float(np.finfo(np.float32).tiny)


def blend_tiles(logits: Array, tiled: TiledScale) -> Array:
    """Blends the logits of one scale's tiles, float32 (tiles, classes, h, w), row by row ->
    (classes, H, W).

    Where tiles overlap, a tile has more weight the closer its centre is. A single tile is returned
    unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    tile_hw = logits.shape[2:]
    height = _cells(tiled.rows, tiled.rows.length_px, tile_hw[0])
    width = _cells(tiled.columns, tiled.columns.length_px, tile_hw[1])
    blended = zeros(logits, (logits.shape[1], height, width), "float32")
    row_weights = as_like(blend_weights(tiled.rows, tile_hw[0]), logits)
    column_weights = as_like(blend_weights(tiled.columns, tile_hw[1]), logits)
    for index, (top_px, left_px) in enumerate(tiled.origins_yx):
        row, column = divmod(index, tiled.columns.tiles)
        top = _cells(tiled.rows, top_px, tile_hw[0])
        left = _cells(tiled.columns, left_px, tile_hw[1])
        weights = row_weights[row, :, None] * column_weights[column]
        blended[:, top : top + tile_hw[0], left : left + tile_hw[1]] += logits[index] * weights
    return blended


def blend_weights(axis: TileAxis, cells: int) -> NDArray[np.float32]:
    """The weights of a tile's logits, float32 (tiles, cells). At each position, the weights sum to
    1.

    The weights are a Hann window that starts after the tile's margin. So logits that depend on the
    tile's border have weight 0. Towards the border of the image itself, the window stays at its
    maximum.
    """
    place = (np.arange(cells, dtype=np.float32) + 0.5) / cells
    inside = np.clip((np.minimum(place, 1 - place) - _MARGIN) / (0.5 - _MARGIN), 0, None)
    windows = np.tile(np.square(np.sin(inside * (np.pi / 2))), (axis.tiles, 1))
    windows[0, place < 0.5] = 1
    windows[-1, place > 0.5] = 1
    begins = [_cells(axis, origin_px, cells) for origin_px in axis.origins_px]
    total = np.zeros(_cells(axis, axis.length_px, cells), np.float32)
    for begin, window in zip(begins, windows, strict=True):
        total[begin : begin + cells] += window
    totals = np.stack([total[begin : begin + cells] for begin in begins])
    return (windows / totals).astype(np.float32)


def average_scales(logits: Sequence[Array]) -> Array:
    """Averages several logits of one image, float32 (classes, h, w) each. The result is on the grid
    of the first.

    The inputs come from several scales and mirror images. The average is over probabilities, not
    logits: each input has one vote, however large its logits are. The result is the logarithm of
    the average, so its softmax is the average again. A single input is returned unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    grid_hw = logits[0].shape[1:]
    probabilities = zeros(logits[0], logits[0].shape, "float32")
    for scale in logits:
        if scale.shape[1:] != grid_hw:
            upsampling = Upsampling(scale.shape[1:], grid_hw, scale)
            scale = upsampling.strip(scale, slice(0, grid_hw[0]))
        probabilities += softmax(scale)
    xp = namespace(probabilities)
    return xp.log(xp.clip(probabilities / len(logits), _TINY, None))


def _cells(axis: TileAxis, length_px: int, cells: int) -> int:
    """The number of logits along `length_px`, if a tile has `cells` of them."""
    return length_px * cells // axis.tile_px


# A class that is nowhere more probable than this is merged with others. This changes no probability
# by more than 0.004 and no mean by more than 0.0001 (measured on photographs).
_NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Candidates:
    """The logits of the candidate classes in a band of rows, and those of all other classes merged
    into one.

    Attributes:
        logits: float32 (candidates, rows, w). If there are other classes, (candidates + 1, rows,
            w): the last is the logarithm of the sum of their exponentials. So the softmax of a
            candidate is the same as among all classes.
        class_ids: of the candidates, ascending: the lower class wins a tie, as among all classes.
    """

    logits: Array
    class_ids: Sequence[int]


@dataclass(frozen=True)
class CandidateMap:
    """Logits on a coarse grid, and where on it a class can win after a bilinear resize.

    Between four neighbours on the grid, a class's resized logit lies between the smallest and the
    largest of its four values. The winner's logit is at least that of every class. So it is at
    least B, the largest of all classes' smallest values. A class whose largest value is below B
    cannot win between these neighbours, whatever the size. So the winners are exactly those among
    all classes. Of 21 classes, one to three remain in most bands of a typical photograph.

    Attributes:
        logits: float32 (classes, h, w).
        matters: (classes, h): whether a class may win, or is not negligible, between that row and
            the next.
        temperature: see `choose_labels`.
    """

    logits: Array
    matters: NDArray[np.bool_]
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Array, temperature: float = 1.0) -> Self:
        xp = namespace(logits)
        largest = _among_neighbours(logits, xp.maximum)
        smallest = _among_neighbours(logits, xp.minimum)
        may_win = xp.any(largest >= xp.amax(smallest, 0), 2)
        most = _with_next_row(softmax(logits / temperature), xp.maximum)
        probable = xp.any(most > _NEGLIGIBLE, 2)
        return cls(logits, on_host(may_win | probable), temperature)

    def candidates(self, rows: slice) -> Candidates:
        """The candidates between the first and the last of these rows of the grid, which are at
        least two.

        The end of `rows` may be beyond the grid's.
        """
        matters = self.matters[:, rows.start : rows.stop - 1].any(axis=1)
        class_ids, others = np.flatnonzero(matters).tolist(), np.flatnonzero(~matters).tolist()
        logits = self.logits[:, rows]
        if not others:
            return Candidates(logits, class_ids)
        others_as_one = logsumexp(logits[others] / self.temperature) * self.temperature
        together = namespace(logits).concatenate([logits[class_ids], others_as_one])
        return Candidates(together, class_ids)


def _among_neighbours(logits: Array, pick: Callable[[Array, Array], Array]) -> Array:
    """(C, h, w) -> (C, h, w - 1): `pick` of every 2x2 neighbours; of one column, w stays."""
    logits = _with_next_row(logits, pick)
    return pick(logits[..., :-1], logits[..., 1:]) if logits.shape[2] > 1 else logits


def _with_next_row(values: Array, pick: Callable[[Array, Array], Array]) -> Array:
    """(C, h, w) -> (C, h, w): `pick` of every row and the next. The last row stays unchanged."""
    with_next = [pick(values[:, :-1], values[:, 1:]), values[:, -1:]]
    return namespace(values).concatenate(with_next, 1)


# A part of the image's columns needs only a part of the grid's columns. This saves most of the
# multiplications by 0.
_FEWEST_PARTS, _COLUMNS_OF_A_PART = 4, 16

# NumPy's OpenBLAS computes larger products with threads of its own, for all cores. They spin while
# they wait, and take the cores from other requests: 8 clients got a third fewer images.
_MOST_MULTIPLICATIONS = 2**18


def _positions(grid_length: int, length_px: int) -> NDArray[np.float32]:
    """Where the image's pixels along one side lie between the cells of the grid."""
    pixels = np.arange(length_px, dtype=np.float32)
    scale = np.float32(grid_length / length_px)
    positions = (pixels + np.float32(0.5)) * scale - np.float32(0.5)
    return positions.clip(0, grid_length - 1)


@dataclass(frozen=True)
class _Part:
    """Some of the image's columns, the grid's columns around them, and their weights."""

    columns: slice
    grid: slice
    weights: Array

    @classmethod
    def of(
        cls, positions: NDArray[np.float32], columns: slice, grid_width: int, like: Array
    ) -> Self:
        """The weights of some columns of the image, from the positions of all columns."""
        left = positions[columns].astype(np.int64)
        right = np.minimum(left + 1, grid_width - 1)
        share = positions[columns] - left
        grid = slice(int(left[0]), int(right[-1]) + 1)
        weights = np.zeros((grid.stop - grid.start, len(left)), np.float32)
        each = np.arange(len(left))
        weights[left - grid.start, each] = 1 - share
        weights[right - grid.start, each] += share
        return cls(columns, grid, as_like(weights, like))


class Upsampling:
    """A bilinear resize from `grid_hw` to `size_hw`, (height, width), that computes each strip of
    rows on its own.

    The strips equal those of `interpolate(mode="bilinear", align_corners=False)` of the whole. Such
    a resize is separable: rows are interpolated first, columns second. Columns are matrix products,
    which are several times as fast on processors.

    Args:
        like: an array of the kind and on the device of the logits.
    """

    def __init__(self, grid_hw: tuple[int, int], size_hw: tuple[int, int], like: Array) -> None:
        (grid_height, grid_width), (height, self._width) = grid_hw, size_hw
        self._positions = _positions(grid_height, height)
        columns = _positions(grid_width, self._width)
        parts = max(_FEWEST_PARTS, ceil(grid_width / _COLUMNS_OF_A_PART))
        width = ceil(self._width / parts)
        self._parts = [
            _Part.of(columns, slice(left, left + width), grid_width, like)
            for left in range(0, self._width, width)
        ]

    def grid_rows(self, strip: slice) -> slice:
        """The rows of the grid around a strip of the image's. The end may be beyond the grid."""
        positions = self._positions[strip]
        return slice(int(positions[0]), int(positions[-1]) + 2)

    def strip(self, logits: Array, strip: slice) -> Array:
        """These rows of the grid (C, rows, w) -> this strip of the image (C, H, W), float32."""
        positions = self._positions[strip] - np.float32(self.grid_rows(strip).start)
        above = positions.astype(np.int64)
        below = np.minimum(above + 1, logits.shape[1] - 1)
        share = as_like((positions - above).astype(np.float32)[:, None], logits)
        upper, lower = (logits[:, as_like(index, logits)] for index in (above, below))
        rows = (upper + share * (lower - upper)).reshape(-1, logits.shape[2])
        resized = empty(rows, (len(rows), self._width), "float32")
        for part in self._parts:
            most = len(rows)
            if isinstance(rows, np.ndarray):
                most = max(1, _MOST_MULTIPLICATIONS // part.weights.size)
            for first in range(0, len(rows), most):
                block = slice(first, first + most)
                product = resized[block, part.columns]
                namespace(rows).matmul(rows[block, part.grid], part.weights, out=product)
        return resized.reshape(logits.shape[0], len(positions), self._width)
