"""Combines logits: blends the tiles of one scale, and averages scales."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, as_like, namespace, softmax, zeros
from .candidates import Upsampling
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
