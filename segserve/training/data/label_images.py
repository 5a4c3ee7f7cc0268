"""Label images: PNG files whose pixels are class ids, colours, or the ids of another list; and the
data sets of Cityscapes and of Roboflow's semantic segmentation masks, which consist of them.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.encode.mask import LabelMap
from ...runtime.record import ClassInfo
from .files import IGNORED, DataError, LabelledImages, read_png

VOC_BORDER = (224, 224, 192)
"""The colour of PASCAL VOC's pixels that belong to no class."""

_LISTED = 3  # unknown colours or ids in a message


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
    """uint8 (H, W): the class id of every pixel, 255 for pixels to ignore.

    Raises:
        DataError: the file is missing or cannot be decoded, or has colours or ids without a class.
    """
    pixels: NDArray[Any] = read_png(path)
    if pixels.ndim == 2:
        values = pixels
    elif (pixels[..., :3] == pixels[..., :1]).all():  # grey in every channel
        values = pixels[..., 0]
    else:
        return _from_colors(path, pixels[..., :3], coding)
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


def _from_colors(path: Path, rgb: NDArray[np.uint8], coding: LabelCoding) -> LabelMap:
    packed = rgb.astype(np.int32) @ np.array([2**16, 2**8, 1], np.int32)
    found, indices = np.unique(packed, return_inverse=True)
    known = {red << 16 | green << 8 | blue: i for (red, green, blue), i in coding.colors.items()}
    unknown = [code for code in found.tolist() if code not in known]
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
    """The colours by class name of CVAT's `labelmap.txt`: lines `name:R,G,B:parts:actions`.

    Raises:
        DataError: a line cannot be read.
    """
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


# Data sets of other tools

_CITYSCAPES = """
    unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road,
    sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole,
    polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
    bus, caravan, trailer, train, motorcycle, bicycle
"""
CITYSCAPES_NAMES = tuple(name.strip() for name in _CITYSCAPES.split(","))
"""The names of Cityscapes' label ids, from 0 on."""

_NOT_EVALUATED = {*range(7), 9, 10, 14, 15, 16, 18, 29, 30}
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"

ROBOFLOW_CLASSES = "_classes.csv"
_MASK = "_mask.png"


class PairedFiles(LabelledImages):
    """A split as pairs of an image and a label image.

    Args:
        source: the folder of the split.
        pairs: name -> image and label image.
    """

    def __init__(
        self, source: Path, pairs: Mapping[str, tuple[Path, Path]], coding: LabelCoding
    ) -> None:
        if not pairs:
            raise DataError(f"{source}: the split is empty")
        self.source = source
        self.names = list(pairs)
        self._pairs = pairs
        self._coding = coding

    def paths(self, name: str) -> tuple[Path, Path]:
        return self._pairs[name]

    def labels(self, name: str) -> LabelMap:
        return read_label_image(self._pairs[name][1], self._coding)


def cityscapes(data: Path, split: str, categories: Mapping[str, int]) -> PairedFiles:
    """The split of a folder with `leftImg8bit` and `gtFine`. Label ids are mapped by their names;
    those that Cityscapes does not evaluate are ignored unless a class names them.
    """
    folder = data / "leftImg8bit" / split
    pairs = {}
    for image in sorted(folder.glob(f"*/*{_IMAGE}")):
        name = image.name.removesuffix(_IMAGE)
        pairs[name] = image, data / "gtFine" / split / image.parent.name / f"{name}{_LABELS}"
    ids = dict.fromkeys(_NOT_EVALUATED, IGNORED)
    for label_id, name in enumerate(CITYSCAPES_NAMES):
        class_id = categories.get(name, categories.get(str(label_id)))
        if class_id is not None:
            ids[label_id] = class_id
    return PairedFiles(folder, pairs, LabelCoding(ids=ids, names=dict(enumerate(CITYSCAPES_NAMES))))


def roboflow_masks(folder: Path, categories: Mapping[str, int]) -> PairedFiles:
    """A split of images, `NAME_mask.png` and `_classes.csv`, in one folder."""
    masks = {path.name.removesuffix(_MASK): path for path in sorted(folder.glob(f"*{_MASK}"))}
    pairs = {
        path.stem: (path, masks[path.stem])
        for path in sorted(folder.iterdir())
        if path.stem in masks
    }
    names = _roboflow_names(folder / ROBOFLOW_CLASSES)
    ids = {value: categories[name] for value, name in names.items() if name in categories}
    return PairedFiles(folder, pairs, LabelCoding(ids=ids, names=names))


def _roboflow_names(path: Path) -> dict[int, str]:
    """Pixel value -> class name, of the columns `Pixel Value` and `Class`."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)][1:]
    try:
        return {int(value): name for value, name, *_ in filter(None, rows)}
    except ValueError as error:
        raise DataError(f"{path}: expected the columns Pixel Value and Class") from error
