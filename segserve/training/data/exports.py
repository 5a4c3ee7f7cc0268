"""Data sets as other tools lay them out: Cityscapes, and Roboflow's semantic segmentation masks."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ...runtime.encode.mask import LabelMap
from .files import IGNORED, DataError, LabelledImages
from .label_images import LabelCoding, read_label_image

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
        self._pairs = dict(pairs)
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
