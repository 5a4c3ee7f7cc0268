"""Checks every image and label map of a split before anything is computed from it, and draws a
contact sheet of them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.encode.overlay import draw_overlay
from ...runtime.record import BACKGROUND, ClassInfo
from .files import IGNORED, DataError, LabelledImages

_TILE_PX, _COLUMNS, _TILES = 240, 5, 20  # of a contact sheet


@dataclass(frozen=True)
class CheckedSplit:
    """A split without problems, and what it holds.

    Attributes:
        pixels: int64 (classes,): the number of pixels of each class.
        notes: unusual facts that are no errors, as lines of text.
    """

    data: LabelledImages
    pixels: NDArray[np.int64]
    notes: tuple[str, ...]


def check_split(
    data: LabelledImages,
    classes: Sequence[ClassInfo],
    *,
    skip_broken: bool = False,
) -> CheckedSplit:
    """Reads every image and label map of the split once and completely.

    Args:
        skip_broken: leave out images that have problems, and say how many.

    Raises:
        DataError: lists all problems: files that are missing, cannot be decoded or differ in size,
            labels that are no class id, duplicate names, a split without a labelled pixel or
            without a pixel of a foreground class.
    """
    repeated = (name for name, count in Counter(data.names).items() if count > 1)
    problems = [
        *data.problems(),
        *(f"{data.source}: {name} is listed more than once" for name in repeated),
    ]
    pixels = np.zeros(len(classes), np.int64)
    with ThreadPoolExecutor() as pool:
        findings = pool.map(lambda name: _check_image(data, name, len(classes)), data.names)
        kept = []
        for name, (found, of_image) in zip(data.names, findings, strict=True):
            if skip_broken and of_image:
                continue
            kept.append(name)
            pixels += found
            problems += of_image
    problems = problems or [*_without_foreground(data, pixels)]
    if problems:
        raise DataError(*dict.fromkeys(problems))
    notes = [*data.notes()]
    if absent := [info.label for info, count in zip(classes, pixels, strict=True) if not count]:
        notes.append(f"{data.source}: no pixel of {', '.join(absent)}")
    if left_out := len(data.names) - len(kept):
        data.names = kept
        notes.append(f"{data.source}: {left_out} images left out, which are broken")
    return CheckedSplit(data, pixels, tuple(notes))


def _without_foreground(data: LabelledImages, pixels: NDArray[np.int64]) -> Iterable[str]:
    if not pixels.any():
        yield (
            f"{data.source}: every pixel of the split is labelled {IGNORED}, to be ignored"
            f"{data.hint()}"
        )
    elif not pixels[BACKGROUND + 1 :].any():
        yield (
            f"{data.source}: the split has no foreground pixel: every label is {BACKGROUND}, the "
            f"background, or {IGNORED}, to be ignored{data.hint()}"
        )


def _check_image(
    data: LabelledImages, name: str, num_classes: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The pixels of each class, int64 (classes,), and the problems of image and label map, each
    checked even if the other has a problem.
    """
    problems: list[str] = []
    size_hw, pixels = None, np.zeros(256, np.int64)
    try:
        size_hw = data.image_size(name)
    except DataError as error:
        problems += error.problems
    try:
        labels = data.labels(name)
        pixels = np.bincount(labels.ravel(), minlength=256)
        if size_hw:
            data.require_same_size(name, size_hw, labels)
    except DataError as error:
        problems += error.problems
    unknown = np.flatnonzero(pixels[num_classes:IGNORED]) + num_classes
    if unknown.size:
        problems.append(
            f"{data.paths(name)[1]}: labels {unknown.tolist()} are none of the {num_classes} "
            f"classes: expected 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore"
        )
    return pixels[:num_classes], problems


def contact_sheet(data: LabelledImages, classes: Sequence[ClassInfo]) -> Image.Image:
    """Up to 20 images, spread evenly over the split, with their labels drawn over them. Pixels to
    ignore are white.
    """
    names = data.names[:: ceil(len(data.names) / _TILES)]
    return tiled([_tile(data, name, classes) for name in names], columns=_COLUMNS, side_px=_TILE_PX)


def tiled(tiles: Sequence[Image.Image], *, columns: int, side_px: int) -> Image.Image:
    """The pictures in rows, each at the upper left of a white square."""
    rows = ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * side_px, rows * side_px), (255, 255, 255))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (column * side_px, row * side_px))
    return sheet


def _tile(data: LabelledImages, name: str, classes: Sequence[ClassInfo]) -> Image.Image:
    image_rgb, labels = data.pair(name)
    image_rgb = np.where((labels == IGNORED)[..., None], np.uint8(255), image_rgb)
    known = np.where(labels == IGNORED, 0, labels).astype(np.uint8)
    present = [int(class_id) for class_id in np.unique(known)]
    tile = draw_overlay(image_rgb, known, classes, present)
    tile.thumbnail((_TILE_PX - 4, _TILE_PX - 4))
    return tile
