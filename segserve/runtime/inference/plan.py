"""Plans the inference on one image: its scales, mirror images and tiles.

Test-time augmentation (TTA) adds other scales, and the mirror image at each scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import get_args

from ...schema.request import Mode, Tta
from ..record import ResizeRule

# From DeepLab's evaluation: Chen et al., arXiv:1706.05587, section 4.1. The finest comes first, see
# `Plan.scales`.
SCALES = (1.75, 1.5, 1.25, 1.0, 0.75, 0.5)

# No backbone has a larger stride. If tiles start at multiples of it, their logits are on the grid
# of the whole image.
_LARGEST_STRIDE_PX = 32

_MOST_DISTORTION = 0.05  # of a side that is rounded to steps above the stride


@dataclass(frozen=True)
class TileAxis:
    """One side of the image at one scale, cut into tiles of `tile_px`.

    The first tile starts at the beginning of the side, and the last tile ends at its end.
    """

    length_px: int
    tile_px: int
    tiles: int = 1
    step_px: int = 1

    @property
    def origins_px(self) -> tuple[int, ...]:
        """Where the tiles start: spread evenly, at multiples of `step_px`."""
        steps, gaps = (self.length_px - self.tile_px) // self.step_px, max(1, self.tiles - 1)
        return tuple(index * steps // gaps * self.step_px for index in range(self.tiles))


@dataclass(frozen=True)
class TiledScale:
    """The image at one scale, whole or in rows and columns of overlapping tiles."""

    rows: TileAxis
    columns: TileAxis

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.rows.length_px, self.columns.length_px

    @property
    def tile_hw(self) -> tuple[int, int]:
        return self.rows.tile_px, self.columns.tile_px

    @property
    def origins_yx(self) -> Iterator[tuple[int, int]]:
        """Top and left of every tile in pixels, row by row."""
        return product(self.rows.origins_px, self.columns.origins_px)

    @property
    def network_pixels(self) -> int:
        """The number of pixels that the network computes."""
        return self.rows.tiles * self.rows.tile_px * self.columns.tiles * self.columns.tile_px


@dataclass(frozen=True)
class Plan:
    """All inputs of the network for one image.

    Attributes:
        scales: the scales, the finest first.
        mirrored: whether the network also computes each scale mirrored left to right.
        cost: pixels that the network computes, in forward passes of the whole image at the resize
            rule's size.
    """

    scales: tuple[TiledScale, ...]
    mirrored: bool
    cost: float


def plan_inference(
    rule: ResizeRule, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
) -> Plan:
    """Plans the inference on an image of this size.

    `slide` cuts the image at its own resolution into tiles of `rule.size_px`. If the tiles would
    not be finer than the whole image at the rule's size, or cannot keep its shape, the image is
    computed whole. Scales are relative to the rule's size or, with tiles, to the image's own size.
    Scales that round to the same size are computed once.
    """
    whole = _whole(rule, height_px, width_px, 1.0)
    # Rounding up does not make an image finer. So the smaller of the own size and the rounded size
    # is compared with the size at which the network sees the whole image.
    own_hw, tiled_hw = (height_px, width_px), _tiled(rule, height_px, width_px, 1.0).size_hw
    sides = zip(own_hw, tiled_hw, whole.size_hw, strict=True)
    is_tiled = mode == "slide" and _can_tile(rule, height_px, width_px)
    is_finer = any(min(own, tiled) > seen for own, tiled, seen in sides)
    at_scale = _tiled if is_tiled and is_finer else _whole
    factors = SCALES if tta == "multiscale" else (1.0,)
    scales = tuple(dict.fromkeys(at_scale(rule, height_px, width_px, each) for each in factors))
    mirrored = tta != "none"
    pixels = sum(tiled.network_pixels for tiled in scales) * (2 if mirrored else 1)
    return Plan(scales, mirrored, pixels / whole.network_pixels)


def costs(rule: ResizeRule, height_px: int, width_px: int) -> dict[tuple[Mode, Tta], float]:
    """`Plan.cost` of every mode and TTA for an image of this size."""
    return {
        (mode, tta): plan_inference(rule, height_px, width_px, mode=mode, tta=tta).cost
        for mode, tta in product(get_args(Mode), get_args(Tta))
    }


def _whole(rule: ResizeRule, height_px: int, width_px: int, scale: float) -> TiledScale:
    scaled = rule.model_copy(update={"size_px": max(1, round(rule.size_px * scale))})
    rows_px, columns_px = scaled.size_for(height_px, width_px)
    return TiledScale(TileAxis(rows_px, rows_px), TileAxis(columns_px, columns_px))


def _can_tile(rule: ResizeRule, height_px: int, width_px: int) -> bool:
    """Whether tiles keep about the image's shape and the network's size. They do not if
    `multiple_of` shares few factors with the stride: of 37, a step has 1184 pixels.
    """
    step_px = lcm(_LARGEST_STRIDE_PX, rule.multiple_of)
    if step_px == _LARGEST_STRIDE_PX:
        return True
    distortions = (abs(_rounded(side, step_px) / side - 1) for side in (height_px, width_px))
    return 2 * step_px <= rule.size_px and max(distortions) <= _MOST_DISTORTION


def _tiled(rule: ResizeRule, height_px: int, width_px: int, scale: float) -> TiledScale:
    step_px = lcm(_LARGEST_STRIDE_PX, rule.multiple_of)
    scaled = (_rounded(side_px * scale, step_px) for side_px in (height_px, width_px))
    return TiledScale(*(_cut(side_px, rule.size_px, step_px) for side_px in scaled))


def _cut(length_px: int, size_px: int, step_px: int) -> TileAxis:
    """Cuts into the fewest tiles that overlap by at least a third.

    A tile has at least two steps, because tiles of one step cannot overlap.
    """
    tile_px = min(length_px, max(2 * step_px, _rounded(size_px, step_px)))
    apart_px = max(step_px, tile_px * 2 // 3 // step_px * step_px)
    return TileAxis(length_px, tile_px, 1 + -(-(length_px - tile_px) // apart_px), step_px)


def _rounded(length_px: float, step_px: int) -> int:
    return max(1, round(length_px / step_px)) * step_px
