"""The picture with its classes laid over it and a legend, to look at."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .mask import LabelMap
from .record import BACKGROUND

DEFAULT_OPACITY = 0.55
_STRIP_PX = 128  # rows that are blended at a time, in 16 bits: a large picture never exists in them whole


class Painted(Protocol):
    """What a class is called and painted in."""

    @property
    def label(self) -> str: ...
    @property
    def color(self) -> tuple[int, int, int]: ...


def draw_overlay(
    image_rgb: NDArray[np.uint8],
    label_map: LabelMap,
    classes: Sequence[Painted],
    shown: Sequence[int],
    *,
    opacity: float = DEFAULT_OPACITY,
) -> Image.Image:
    """Lays the class colours over the picture; class 0, the background, stays as it is.

    Args:
        image_rgb: uint8 (H, W, 3), RGB.
        label_map: uint8 (H, W).
        shown: class ids for the legend, in its order. The legend is left out of pictures too small for it.
        opacity: of the colours, from 0 (the picture alone) to 1.

    Returns:
        RGB, of the size of the picture.

    Raises:
        ValueError: an opacity outside 0..1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, got {opacity}")
    # Row by row of the palette: what a pixel keeps of the picture, and what its class adds, both in 1/256.
    keep = np.full(256, round(256 * (1 - opacity)), np.uint16)
    keep[BACKGROUND] = 256
    added = np.zeros((256, 3), np.uint16)
    added[: len(classes)] = [info.color for info in classes]
    added *= (256 - keep)[:, None]
    blended = np.empty_like(image_rgb)
    for top_px in range(0, len(image_rgb), _STRIP_PX):
        strip = slice(top_px, top_px + _STRIP_PX)
        labels = label_map[strip]
        blended[strip] = (image_rgb[strip] * keep[labels][..., None] + added[labels]) >> 8
    picture = Image.fromarray(blended)
    _draw_legend(picture, [classes[class_id] for class_id in shown if class_id != BACKGROUND])
    return picture


def _draw_legend(picture: Image.Image, entries: Sequence[Painted]) -> None:
    size_px = max(11, min(picture.size) // 28)
    font = ImageFont.load_default(size_px)
    row_px, margin_px = round(size_px * 1.5), round(size_px * 0.5)
    text_px = max((int(font.getlength(info.label)) for info in entries), default=0)
    width_px, height_px = text_px + row_px + 2 * margin_px, row_px * len(entries) + margin_px
    if not entries or width_px > picture.width or height_px > picture.height:
        return
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, 0, width_px, height_px), fill=(0, 0, 0, 150))
    for row, info in enumerate(entries):
        top_px = margin_px + row * row_px
        draw.rectangle((margin_px, top_px, margin_px + size_px, top_px + size_px), fill=info.color)
        draw.text((margin_px + row_px, top_px - 1), info.label, fill=(255, 255, 255), font=font)
