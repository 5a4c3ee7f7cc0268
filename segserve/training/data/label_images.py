"""Label images: PNG files whose pixels are class ids, colours, or the ids of another list."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...runtime.encode.mask import LabelMap
from ...runtime.record import ClassInfo
from .files import IGNORED, MAX_PIXELS, DataError, read_bytes

VOC_BORDER = (224, 224, 192)
"""The colour of PASCAL VOC's pixels that belong to no class."""

_LISTED = 3  # unknown colours or ids in a message
_CUT_TO_8_BITS = "LA;16B", "RGB;16B", "RGBA;16B"  # Pillow keeps the high byte
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow scales grey of few bits to 255


@dataclass(frozen=True)
class LabelCoding:
    """How the pixels of label images become class ids.

    Attributes:
        colors: RGB -> class id, or 255 for pixels to ignore.
        ids: stored value -> class id; None if the values are class ids.
        names: stored value -> name, for messages.
        ignore_id: the stored value of pixels to ignore; None if there is none. Then 255 is the
            foreground of a set with two classes.
    """

    colors: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    ids: Mapping[int, int] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    ignore_id: int | None = IGNORED

    @classmethod
    def of(
        cls,
        classes: Sequence[ClassInfo],
        *,
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        categories: Mapping[str, int] | None = None,
        ignore_id: int | None = IGNORED,
    ) -> "LabelCoding":
        """The coding of a set with these classes.

        Args:
            colors: the colours by class name, if the data set has a list of its own.
            categories: name in the data set -> class id. Names that are numbers are stored values.
        """
        named = categories or {info.label: class_id for class_id, info in enumerate(classes)}
        by_color = (
            {rgb: named[name] for name, rgb in colors.items() if name in named}
            if colors
            else {info.color: class_id for class_id, info in enumerate(classes)}
        )
        numbers = {int(name): class_id for name, class_id in named.items() if name.isdecimal()}
        return cls({VOC_BORDER: IGNORED} | by_color, numbers or None, {}, ignore_id)


CLASS_IDS = LabelCoding()
"""Values are class ids, 255 is ignored."""


def read_label_image(path: Path, coding: LabelCoding) -> LabelMap:
    """uint8 (H, W): the class id of every pixel, 255 for pixels to ignore. Raises DataError if the
    file is unreadable, or has colours or ids without a class.
    """
    values: NDArray[Any] = read_png(path)
    if values.ndim == 3:
        labels = _from_colors(path, values[..., :3], coding)
        if labels is not None:
            return labels
        values = values[..., 0]
    if values.max(initial=0) > IGNORED:
        raise DataError(f"{path}: has values up to {values.max()}, class ids end at {IGNORED - 1}")
    return _from_ids(path, values.astype(np.uint8), coding)


def _from_ids(path: Path, values: LabelMap, coding: LabelCoding) -> LabelMap:
    table = np.arange(256, dtype=np.uint8)
    if coding.ids is not None:
        known = {coding.ignore_id: IGNORED} | dict(coding.ids)
        unknown = [value for value in np.unique(values).tolist() if value not in known]
        if unknown:
            shown = ", ".join(
                f"{value} ({coding.names[value]})" if value in coding.names else str(value)
                for value in unknown[:_LISTED]
            )
            raise DataError(
                f"{path}: values in no class: {shown}; name them in the class file by `from` or "
                "`ignore`"
            )
        for value, class_id in known.items():
            if value is not None:
                table[value] = class_id
    elif coding.ignore_id is None:
        two_classes = len({*coding.colors.values()} - {IGNORED}) == 2
        table[IGNORED] = 1 if two_classes else IGNORED
    elif coding.ignore_id != IGNORED:
        table[coding.ignore_id] = IGNORED
    return np.asarray(table[values])


def _from_colors(path: Path, rgb: NDArray[np.uint8], coding: LabelCoding) -> LabelMap | None:
    """None if some colour is of no class and all are grey: then the pixels are class ids."""
    packed = rgb.astype(np.int32) @ np.array([2**16, 2**8, 1], np.int32)
    found, indices = np.unique(packed, return_inverse=True)
    known = {red << 16 | green << 8 | blue: i for (red, green, blue), i in coding.colors.items()}
    unknown = [code for code in found.tolist() if code not in known]
    if unknown and (rgb == rgb[..., :1]).all():
        return None
    if unknown:
        shown = ", ".join(
            f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in unknown[:_LISTED]
        )
        raise DataError(
            f"{path}: {len(unknown)} colours are of no class: {shown}; give each class its `color` "
            "in the class file, or put labelmap.txt into the data set's folder"
        )
    labels = np.array([known[code] for code in found.tolist()], np.uint8)
    return np.asarray(labels[indices].reshape(rgb.shape[:2]))


def read_labelmap(path: Path) -> dict[str, tuple[int, int, int]]:
    """The colours by class name of CVAT's `labelmap.txt`: lines `name:R,G,B:parts:actions`."""
    colors = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(part) for part in rest.split(":")[0].split(","))
        except ValueError as error:
            raise DataError(f"{path}: expected name:R,G,B::, got {line!r}") from error
        colors[name.strip()] = (red, green, blue)
    return colors


def read_png(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The stored values of a PNG: (H, W) of grey or palette, (H, W, 3) or (H, W, 4) of colours.
    Alpha of grey is left out.

    Raises:
        DataError: the file is missing, cannot be decoded, or has alpha or colours of 16 bits.
    """
    pixels, stored_as = decode_png(path, read_bytes(path))
    if stored_as in _CUT_TO_8_BITS:
        raise DataError(
            f"{path}: has {stored_as.removesuffix(';16B')} channels of 16 bits, of which only 8 "
            "can be read: save it as grey without alpha, or with 8 bits per channel"
        )
    if step := _GREY_STEPS.get(stored_as):
        return pixels // np.uint8(step)
    return pixels[..., 0] if stored_as.startswith("LA") else pixels


def read_rgb_png(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of an RGB PNG. Raises as `read_png` does."""
    pixels, stored_as = decode_png(path, read_bytes(path))
    if stored_as != "RGB":
        raise DataError(f"{path}: expected an 8-bit RGB PNG, got {stored_as}")
    return pixels


def decode_png(path: Path, content: bytes) -> tuple[NDArray[Any], str]:
    """The pixels, and Pillow's name for how the PNG stores them: `RGB`, `L;4`, `P`, ... Raises
    DataError, which names the path, if it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            width_px, height_px = picture.size
            if width_px * height_px > MAX_PIXELS:
                raise DataError(
                    f"{path}: has {width_px} x {height_px} pixels, the limit is {MAX_PIXELS}"
                )
            *_, stored_as = picture.tile[0]
            pixels = np.array(picture)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is no PNG file") from error
    except Exception as error:  # Pillow raises many types for broken files
        raise DataError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint8), str(stored_as)
