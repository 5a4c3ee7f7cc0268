"""Combines logits: blends the tiles of one scale, and averages scales."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from .plan import TileAxis, TiledScale

# Fraction of a tile's side, at either end: a quarter of the smallest overlap. Logits there depend
# on the tile's border and not on the image.
_MARGIN = 1 / 12


def blend_tiles(logits: Tensor, tiled: TiledScale) -> Tensor:
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
    blended = logits.new_zeros((logits.shape[1], height, width))
    row_weights = blend_weights(tiled.rows, tile_hw[0]).to(logits.device)
    column_weights = blend_weights(tiled.columns, tile_hw[1]).to(logits.device)
    for index, (top_px, left_px) in enumerate(tiled.origins_yx):
        row, column = divmod(index, tiled.columns.tiles)
        top, left = (
            _cells(tiled.rows, top_px, tile_hw[0]),
            _cells(tiled.columns, left_px, tile_hw[1]),
        )
        weights = row_weights[row, :, None] * column_weights[column]
        blended[:, top : top + tile_hw[0], left : left + tile_hw[1]] += logits[index] * weights
    return blended


def blend_weights(axis: TileAxis, cells: int) -> Tensor:
    """The weights of a tile's logits, float32 (tiles, cells). At each position, the weights sum to
    1.

    The weights are a Hann window that starts after the tile's margin. So logits that depend on the
    tile's border have weight 0. Towards the border of the image itself, the window stays at its
    maximum.
    """
    place = (torch.arange(cells) + 0.5) / cells
    inside = ((torch.minimum(place, 1 - place) - _MARGIN) / (0.5 - _MARGIN)).clamp(min=0)
    windows = (inside * (torch.pi / 2)).sin().square().repeat(axis.tiles, 1)
    windows[0, place < 0.5] = 1
    windows[-1, place > 0.5] = 1
    begins = [_cells(axis, origin_px, cells) for origin_px in axis.origins_px]
    total = torch.zeros(_cells(axis, axis.length_px, cells))
    for begin, window in zip(begins, windows, strict=True):
        total[begin : begin + cells] += window
    return windows / torch.stack([total[begin : begin + cells] for begin in begins])


def average_scales(logits: Sequence[Tensor]) -> Tensor:
    """Averages several logits of one image, float32 (classes, h, w) each. The result is on the grid
    of the first.

    The inputs come from several scales and mirror images. The average is over probabilities, not
    logits: each input has one vote, however large its logits are. The result is the logarithm of
    the average, so its softmax is the average again. A single input is returned unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    grid_hw = logits[0].shape[1:]
    probabilities = torch.zeros_like(logits[0])
    for tiled in logits:
        if tiled.shape[1:] != grid_hw:
            tiled = F.interpolate(tiled[None], size=grid_hw, mode="bilinear", align_corners=False)[
                0
            ]
        probabilities += tiled.softmax(dim=0)
    return (probabilities / len(logits)).clamp_(min=torch.finfo(torch.float32).tiny).log_()


def _cells(axis: TileAxis, length_px: int, cells: int) -> int:
    """The number of logits along `length_px`, if a tile has `cells` of them."""
    return length_px * cells // axis.tile_px
