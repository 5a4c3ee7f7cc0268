"""Images read from files, with errors that name the file; the interface of one split of a data set,
and the check of all its files before anything is computed from it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.decode.image import decode_image, decoded_size
from ...runtime.encode.mask import LabelMap
from ...runtime.encode.overlay import draw_overlay
from ...runtime.errors import SegserveError
from ...runtime.record import BACKGROUND, ClassInfo

IGNORED = 255
"""The label of pixels that belong to no class. Training and evaluation leave them out."""

MAX_PIXELS = 2**26
"""The largest width times height of an image or a label map. Cameras give less."""

_LISTED_PROBLEMS = 50
_TILE_PX, _COLUMNS, _TILES = 240, 5, 20  # of a contact sheet
Read = TypeVar("Read")


@dataclass(frozen=True)
class ReadOptions:
    """How data is read that can mean several things, or is broken.

    Attributes:
        ignore_id: the value of pixels to ignore in label images; None if there is none.
        crowds_as_objects: COCO annotations with `iscrowd` are objects, as CVAT exports masks;
            otherwise their pixels are ignored.
        skip_broken: images and annotations that cannot be read are left out and counted;
            otherwise they are errors.
    """

    ignore_id: int | None = IGNORED
    crowds_as_objects: bool = False
    skip_broken: bool = False


AS_USUAL = ReadOptions()


class DataError(ValueError):
    """A data set cannot be used. Every problem names its file.

    A single problem is the whole message. Several problems follow a line that counts them, one per
    line; the message lists the first 50.

    Attributes:
        problems: all problems, one line each.
        lines: the lines of the message.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        self.lines = problems
        if len(problems) > 1:
            counted = f"{len(problems)} problems with the data:"
            self.lines = counted, *problems[:_LISTED_PROBLEMS]
        if len(problems) > _LISTED_PROBLEMS:
            self.lines += (f"and {len(problems) - _LISTED_PROBLEMS} more",)
        super().__init__("\n  ".join(self.lines))


class LabelledImages(ABC):
    """One split of a data set. Several threads and processes may read it at once.

    Attributes:
        names: one name per image, in the order of the split.
        source: the file that lists the names.
    """

    names: Sequence[str]
    source: Path

    @property
    def split(self) -> str:
        """The name of the split, for people."""
        return self.source.stem

    @abstractmethod
    def paths(self, name: str) -> tuple[Path, Path]:
        """The file of the image and the file of its labels. They may be missing."""

    @abstractmethod
    def labels(self, name: str) -> LabelMap:
        """uint8 (H, W): the class id of every pixel, 255 for ignored pixels. Raises DataError if
        the labels are unreadable.
        """

    def hint(self) -> str:
        """What could make foreground of pixels that are ignored, as the end of a sentence."""
        return ""

    def notes(self) -> Sequence[str]:
        """Unusual facts about the split that are no errors, as lines of text."""
        return ()

    def problems(self) -> Sequence[str]:
        """Problems of the split as a whole, which no single image or label map shows."""
        return ()

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self.paths(name)[0])

    def image_size(self, name: str) -> tuple[int, int]:
        return image_size(self.paths(name)[0])

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """Image and label map. Raises DataError if one is unreadable or the sizes differ."""
        image_rgb, labels = self.image(name), self.labels(name)
        self.require_same_size(name, image_rgb.shape[:2], labels)
        return image_rgb, labels

    def require_same_size(self, name: str, image_hw: tuple[int, ...], labels: LabelMap) -> None:
        """Raises DataError if the label map, uint8 (H, W), has not the image's (height, width)."""
        if labels.shape == image_hw:
            return
        image_path, label_path = self.paths(name)
        raise DataError(
            f"{label_path}: the label map has {_wh(labels.shape)} pixels, but {image_path} has "
            f"{_wh(image_hw)}"
        )


def _wh(shape_hw: tuple[int, ...]) -> str:
    height_px, width_px = shape_hw
    return f"{width_px} x {height_px}"


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB, upright as when it is served. Raises DataError if the image is missing
    or cannot be decoded completely.
    """
    return _decoded(path, lambda content: decode_image(content, max_pixels=MAX_PIXELS))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image. Raises as `read_image` does; faster."""
    return _decoded(path, lambda content: decoded_size(content, max_pixels=MAX_PIXELS))


def _decoded(path: Path, decode: Callable[[bytes], Read]) -> Read:
    try:
        return decode(read_bytes(path))
    except SegserveError as error:
        raise DataError(f"{path}: {error}") from error


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
        DataError: lists all problems.
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
    if not problems and not pixels[BACKGROUND + 1 :].any():
        problems.append(
            f"{data.source}: the split has no foreground pixel: every label is {BACKGROUND}, the "
            f"background, or {IGNORED}, to be ignored{data.hint()}"
        )
    if problems:
        raise DataError(*dict.fromkeys(problems))
    notes = [*data.notes()]
    if absent := [info.label for info, count in zip(classes, pixels, strict=True) if not count]:
        notes.append(f"{data.source}: no pixel of {', '.join(absent)}")
    if left_out := len(data.names) - len(kept):
        data.names = kept
        notes.append(f"{data.source}: {left_out} images left out, which are broken")
    return CheckedSplit(data, pixels, tuple(notes))


def _check_image(
    data: LabelledImages, name: str, num_classes: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The pixels of each class, int64 (classes,), and the problems of image and label map."""
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
