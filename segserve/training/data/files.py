"""Images and label maps read from files, with errors that name the file, and the interface of one
split of a data set.
"""

import io
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.decode.image import decode_image, decoded_size
from ...runtime.encode.mask import LabelMap
from ...runtime.errors import SegserveError

IGNORED = 255
"""The label of pixels that belong to no class. Training and evaluation leave them out."""

MAX_PIXELS = 2**26
"""The largest width times height of an image or a label map. Cameras give less."""

_LISTED_PROBLEMS = 50
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of a PNG file: signature, length, IHDR, width, height, bit depth, colour type.
_HEADER = struct.Struct(">8x4x4sIIBB")
_GREY, _RGB, _GREY_ALPHA = 0, 2, 4
_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}

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
        """uint8 (H, W): the class id of every pixel, 255 for ignored pixels.

        Raises:
            DataError: the labels are missing or unreadable.
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
        """The image as `read_image` gives it."""
        return read_image(self.paths(name)[0])

    def image_size(self, name: str) -> tuple[int, int]:
        """(height, width) as `image_size` gives it."""
        return image_size(self.paths(name)[0])

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """The image and its label map.

        Raises:
            DataError: as of `image` and `labels`, or the sizes differ.
        """
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
    """The content of a file.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB, upright as when it is served.

    Raises:
        DataError: the image is missing or cannot be decoded completely.
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


def read_png(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The stored values of a PNG: (H, W) of grey or palette, (H, W, 3) or (H, W, 4) of colours.
    Alpha of grey is left out.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    pixels, depth, color_type = _read_png(path)
    if color_type == _GREY and depth in (2, 4):  # Pillow scales them to 255
        return pixels // np.uint8(255 // (2**depth - 1))
    return pixels[..., 0] if color_type == _GREY_ALPHA else pixels


def read_rgb_png(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of an RGB PNG. Raises as `read_png` does."""
    pixels, depth, color_type = _read_png(path)
    if (color_type, depth) != (_RGB, 8):
        raise DataError(
            f"{path}: expected an 8-bit RGB PNG, got {depth}-bit "
            f"{_COLOR_TYPES.get(color_type, 'colours')}"
        )
    return pixels


def _read_png(path: Path) -> tuple[NDArray[Any], int, int]:
    """The pixels as Pillow gives them, and the file's bit depth and colour type."""
    content = read_bytes(path)
    if not content.startswith(_SIGNATURE) or len(content) < _HEADER.size:
        raise DataError(f"{path}: is no PNG file")
    _, width_px, height_px, depth, color_type = _HEADER.unpack_from(content)
    if width_px * height_px > MAX_PIXELS:
        raise DataError(f"{path}: has {width_px} x {height_px} pixels, the limit is {MAX_PIXELS}")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            pixels = np.array(picture)
    except Exception as error:  # Pillow raises many types for broken files
        raise DataError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    if pixels.dtype != np.uint16:
        pixels = pixels.astype(np.uint8)
    return pixels, depth, color_type
