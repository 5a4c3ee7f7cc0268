"""Draws class colours and a legend over an image, for viewing."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..record import BACKGROUND
from .mask import LabelMap

DEFAULT_OPACITY = 0.55
_STRIP_PX = 128  # rows blended at a time: the 16-bit copy of a large image is never complete


class Painted(Protocol):
    """The label and the colour of a class."""

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
    """Blends the class colours with the image. Class 0, the background, stays unchanged.

    Args:
        image_rgb: uint8 (H, W, 3), RGB.
        label_map: uint8 (H, W).
        shown: class ids for the legend, in order. An image that is too small for the legend gets
            none.
        opacity: of the colours, from 0 (the image alone) to 1.

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
