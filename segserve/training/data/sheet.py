"""A contact sheet: images of a split under their labels, to look at."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image

from ...runtime.encode.overlay import draw_overlay
from ...runtime.record import ClassInfo
from .files import IGNORED, LabelledImages

_TILE_PX, _COLUMNS, _TILES = 240, 5, 20


def contact_sheet(data: LabelledImages, classes: Sequence[ClassInfo]) -> Image.Image:
    """Up to 20 images, spread evenly over the split, with their labels drawn over them. Pixels to
    ignore are white.
    """
    names = data.names[:: ceil(len(data.names) / _TILES)]
    rows = ceil(len(names) / _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE_PX, rows * _TILE_PX), (255, 255, 255))
    for index, name in enumerate(names):
        row, column = divmod(index, _COLUMNS)
        sheet.paste(_tile(data, name, classes), (column * _TILE_PX, row * _TILE_PX))
    return sheet


def _tile(data: LabelledImages, name: str, classes: Sequence[ClassInfo]) -> Image.Image:
    image_rgb, labels = data.pair(name)
    image_rgb = np.where((labels == IGNORED)[..., None], np.uint8(255), image_rgb)
    known = np.where(labels == IGNORED, 0, labels).astype(np.uint8)
    present = [int(class_id) for class_id in np.unique(known)]
    tile = draw_overlay(image_rgb, known, classes, present)
    tile.thumbnail((_TILE_PX - 4, _TILE_PX - 4))
    return tile
