"""Resizes a coarse grid of logits to an image's size, one strip of the image at a time."""

from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

# Grids of up to this many columns are resized by matrix products, which are several times as fast
# on processors.
_FEW_COLUMNS = 64

# A part of the image's columns needs only a part of the grid's columns. This saves half of the
# multiplications by 0.
_PARTS = 4


@dataclass(frozen=True)
class _Part:
    """Some columns of the image, the columns of the grid around them, and the weights of these,
    float32.
    """

    columns: slice
    grid: slice
    weights: Tensor

    @classmethod
    def of(cls, weights: Tensor, columns: slice) -> Self:
        """Selects the weights of some columns of the image from the weights of all columns, (w,
        W).
        """
        used = weights[:, columns].any(dim=1).nonzero()
        grid = slice(int(used[0]), int(used[-1]) + 1)
        return cls(columns, grid, weights[grid, columns].contiguous())


class Upsampling:
    """A bilinear resize from `grid_hw` to `size_hw`, (height, width), that computes each strip of
    rows on its own.

    The strips equal those of `interpolate(mode="bilinear", align_corners=False)` of the whole. Such
    a resize is
    separable: rows are interpolated first, columns second.
    """

    def __init__(
        self, grid_hw: tuple[int, int], size_hw: tuple[int, int], device: torch.device
    ) -> None:
        (grid_height, grid_width), (height, self._width) = grid_hw, size_hw
        positions = (torch.arange(height) + 0.5) * (grid_height / height) - 0.5
        self._positions = positions.clamp(
            min=0, max=grid_height - 1
        )  # the image's rows, in rows of the grid
        self._parts: list[_Part] = []
        if grid_width <= _FEW_COLUMNS:
            grid = torch.eye(grid_width, device=device)[None, None]
            columns = F.interpolate(grid, size=(grid_width, self._width), mode="bilinear")[0, 0]
            width = ceil(self._width / _PARTS)
            self._parts = [
                _Part.of(columns, slice(left, left + width))
                for left in range(0, self._width, width)
            ]

    def grid_rows(self, strip: slice) -> slice:
        """The rows of the grid around a strip of the image's rows. The end may be beyond the
        grid's.
        """
        positions = self._positions[strip]
        return slice(int(positions[0]), int(positions[-1]) + 2)

    def strip(self, logits: Tensor, strip: slice) -> Tensor:
        """These rows of the grid, float32 (C, rows, w) -> this strip of the image, float32 (C, H,
        W).
        """
        positions = (self._positions[strip] - self.grid_rows(strip).start).to(logits.device)
        above = positions.long()
        below = (above + 1).clamp(max=logits.shape[1] - 1)
        rows = torch.lerp(logits[:, above], logits[:, below], (positions - above).view(1, -1, 1))
        if not self._parts:
            return F.interpolate(rows[None], size=(len(positions), self._width), mode="bilinear")[0]
        resized = rows.new_empty((*rows.shape[:2], self._width))
        for part in self._parts:
            torch.mm(
                rows.flatten(0, 1)[:, part.grid],
                part.weights,
                out=resized.flatten(0, 1)[:, part.columns],
            )
        return resized
