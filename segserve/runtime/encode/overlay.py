"""Draws the classes over an image, for viewing: coloured regions with outlines and names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..record import BACKGROUND, ClassInfo
from .mask import LabelMap

DEFAULT_OPACITY = 0.45
_STRIP_PX = 128  # rows blended at a time: the 16-bit copy of a large image is never complete
_OUTLINE_PER_PX = 1 / 250  # width of the outline, as a share of the image's shorter side
_GRID_PX = 96  # longer side of the reduced label map that finds a place for each name

Color = tuple[int, int, int]


def draw_overlay(
    image_rgb: NDArray[np.uint8],
    label_map: LabelMap,
    classes: Sequence[ClassInfo],
    shown: Sequence[int],
    *,
    opacity: float = DEFAULT_OPACITY,
) -> Image.Image:
    """Blends bright class colours with the image and outlines each region, in white inside of it
    and in black outside, so that it can be seen on any picture. The background stays unchanged.

    Args:
        image_rgb: uint8 (H, W, 3), RGB.
        label_map: uint8 (H, W).
        shown: ids of the classes whose names are written, each on its widest region.
        opacity: of the colours, from 0 (the image) to 1 (the colours). Both have no outlines.

    Returns:
        RGB, of the size of the image.

    Raises:
        ValueError: the opacity is outside 0..1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, got {opacity}")
    # By class id: the part of the image's colour that a pixel keeps, and the colour that the class
    # adds, both in 1/256.
    keep = np.full(256, round(256 * (1 - opacity)), np.uint16)
    keep[BACKGROUND] = 256
    added = np.zeros((256, 3), np.uint16)
    added[: len(classes)] = [bright(info.color) for info in classes]
    added *= (256 - keep)[:, None]
    blended = np.empty_like(image_rgb)
    for top_px in range(0, len(image_rgb), _STRIP_PX):
        strip = slice(top_px, top_px + _STRIP_PX)
        labels = label_map[strip]
        blended[strip] = (image_rgb[strip] * keep[labels][..., None] + added[labels]) >> 8
    if 0 < opacity < 1:
        _draw_outlines(blended, label_map)
    picture = Image.fromarray(blended)
    for class_id in shown:
        if class_id != BACKGROUND:
            _draw_name(picture, label_map, class_id, classes[class_id].label)
    return picture


def bright(color: Color) -> Color:
    """The colour with its hue, as bright as can be: palettes for label maps have dark colours."""
    most = max(color)
    return tuple(round(255 * part / most) for part in color) if most else (255, 255, 255)  # type: ignore[return-value]


def _draw_outlines(picture: NDArray[np.uint8], label_map: LabelMap) -> None:
    """Draws into the picture, uint8 (H, W, 3): white in the class with the larger id."""
    width_px = max(1, round(min(label_map.shape) * _OUTLINE_PER_PX))
    for axis, (before, after) in enumerate(
        ((label_map[:-1], label_map[1:]), (label_map[:, :-1], label_map[:, 1:]))
    ):
        border = np.nonzero(before != after)
        is_entry = before[border] < after[border]
        for step in range(width_px):
            for offset, is_white in ((-step, ~is_entry), (step + 1, is_entry)):
                place = list(border)
                place[axis] = np.clip(place[axis] + offset, 0, picture.shape[axis] - 1)
                picture[tuple(place)] = np.where(is_white, 255, 0)[:, None]


def _draw_name(picture: Image.Image, label_map: LabelMap, class_id: int, label: str) -> None:
    """Writes the name on the class's widest region; nothing if the picture is too small."""
    place = widest_place(label_map == class_id)
    size_px = max(12, min(picture.size) // 18)
    font = ImageFont.load_default(size_px)
    half_px = font.getlength(label) / 2 + 3
    if place is None or 2 * half_px > picture.width or 2 * size_px > picture.height:
        return
    x_px = min(max(place[0], half_px), picture.width - half_px)
    y_px = min(max(place[1], size_px), picture.height - size_px)
    ImageDraw.Draw(picture).text(
        (x_px, y_px),
        label,
        fill=(255, 255, 255),
        font=font,
        anchor="mm",
        stroke_width=max(1, size_px // 10),
        stroke_fill=(0, 0, 0),
    )


def widest_place(mask: NDArray[np.bool_]) -> tuple[int, int] | None:
    """(x, y) of a pixel of the mask far from its border; None if the mask is empty."""
    step = max(1, max(mask.shape) // _GRID_PX)
    left = np.pad(mask[::step, ::step], 1)
    place = None
    while left.any():
        rows, columns = np.nonzero(left)
        middle = len(rows) // 2
        place = int(columns[middle] - 1) * step, int(rows[middle] - 1) * step
        inner = left[1:-1, 1:-1]
        inner &= left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
    if place is None and mask.any():  # between the pixels of the reduced mask
        rows, columns = np.nonzero(mask)
        place = int(columns[0]), int(rows[0])
    return place
