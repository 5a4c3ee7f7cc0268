"""Data sets as folders of files: PASCAL VOC layout, Cityscapes, and Roboflow's semantic
segmentation masks.
"""

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...runtime.encode.mask import LabelMap
from .files import IGNORED, DataError, LabelledImages, read_bytes
from .label_images import CLASS_IDS, LabelCoding, read_label_image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".mpo"),
)
"""Of images, in upper or lower case; of several images with one name, the first is taken."""

_LABEL_ENDINGS = (".png", "_mask.png", ".PNG", "_mask.PNG")
LABELMAP = "labelmap.txt"
"""CVAT's list of colours."""

_DEV_NAMES = ("dev", "val", "valid")
_DEV_SHARE = 10  # every tenth image
SEEDED_SPLITS = "train", "dev"
"""The splits of a folder without split lists."""


class _VocLayout(NamedTuple):
    images: str
    labels: str
    lists: str


_LAYOUTS = (
    _VocLayout("images", "labels", "."),
    _VocLayout("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
)


class VocFolder(LabelledImages):
    """One split of a folder in PASCAL VOC layout: a list's name, or the path of a .txt list."""

    def __init__(self, folder: Path, split: str, coding: LabelCoding = CLASS_IDS) -> None:
        self.folder = folder
        self._layout = _layout_of(folder)
        self._coding = coding
        self._images = _images_by_name(folder / self._layout.images)
        self.source = (
            Path(split) if split.endswith(".txt") else folder / self._layout.lists / f"{split}.txt"
        )
        self._notes: Sequence[str] = ()
        if self.source.is_file():
            self.names = [_known_name(name, self._images) for name in _read_names(self.source)]
        elif lists := _split_lists(self.source.parent, folder / self._layout.images):
            raise DataError(
                f"{self.source}: there is no such split list; lists in that folder: "
                f"{', '.join(lists)}"
            )
        else:
            self.names, *self._notes = seeded_split(self._images, split, self.source)

    def notes(self) -> Sequence[str]:
        return self._notes

    def hint(self) -> str:
        if self._coding.ignore_id != IGNORED:
            return ""
        return f"; if {IGNORED} is the foreground, --ignore-id none reads it"

    def paths(self, name: str) -> tuple[Path, Path]:
        image = self._images.get(name, self.folder / self._layout.images / f"{name}.jpg")
        labels = self.folder / self._layout.labels
        candidates = (labels / f"{name}{ending}" for ending in _LABEL_ENDINGS)
        return image, next((p for p in candidates if p.is_file()), labels / f"{name}.png")

    def labels(self, name: str) -> LabelMap:
        path = self.paths(name)[1]
        if not path.is_file() and (jpeg := path.with_suffix(".jpg")).is_file():
            raise DataError(f"{jpeg}: JPEG changes the values of label images: save them as PNG")
        return read_label_image(path, self._coding)


def is_voc(folder: Path) -> bool:
    return any(
        (folder / layout.images).is_dir() and (folder / layout.labels).is_dir()
        for layout in _LAYOUTS
    )


def seeded_split(names: Iterable[str], split: str, source: Path) -> tuple[list[str], str]:
    """The images of one split of a folder without split lists, chosen by a fixed seed, and a note
    that says so.

    Raises:
        DataError: there is no such split, or it would be empty.
    """
    shuffled = sorted({*names})
    random.Random(0).shuffle(shuffled)  # noqa: S311 - no secret
    dev = shuffled[: max(1, len(shuffled) // _DEV_SHARE)]
    chosen = {"train": shuffled[len(dev) :], **dict.fromkeys(_DEV_NAMES, dev)}.get(split)
    if not chosen:
        raise DataError(
            f"{source}: there is no such split list, and none that could be made: without "
            f"lists, there are train and {', '.join(_DEV_NAMES)}"
        )
    return sorted(chosen), (
        f"{source.parent}: has no split lists; {split} are {len(chosen)} of {len(shuffled)} "
        "images, chosen by a fixed seed"
    )


def voc_splits(folder: Path) -> list[str]:
    """The names of the lists in a folder in PASCAL VOC layout; train and dev without lists."""
    layout = _layout_of(folder)
    return _split_lists(folder / layout.lists, folder / layout.images) or [*SEEDED_SPLITS]


def _split_lists(lists: Path, images: Path) -> list[str]:
    """The names of the .txt files in a folder that list images; a README lists none."""
    known = _images_by_name(images)
    return sorted(path.stem for path in lists.glob("*.txt") if _is_list(path, images, known))


def _is_list(path: Path, images: Path, known: Mapping[str, Path]) -> bool:
    """Whether the file has the name of a split, or a line that names an existing image."""
    if path.stem in ("train", *_DEV_NAMES):
        return True  # even if all its images are missing
    try:
        names = (_known_name(line, known) for line in _read_names(path))
        return any(name in known or (images / f"{name}.jpg").is_file() for name in names)
    except (DataError, OSError):  # no text, or lines too long for a file's name
        return False


def _known_name(listed: str, known: Mapping[str, Path]) -> str:
    """The name of an image that a list gives with or without its suffix."""
    path = Path(listed)
    has_suffix = listed not in known and path.suffix.lower() in SUFFIXES
    return path.name.removesuffix(path.suffix) if has_suffix else listed


def _images_by_name(folder: Path) -> dict[str, Path]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    paths.sort(key=lambda path: -SUFFIXES.index(path.suffix.lower()))
    return {path.stem: path for path in paths}


def _layout_of(folder: Path) -> _VocLayout:
    for layout in _LAYOUTS:
        if (folder / layout.images).is_dir():
            return layout
    expected = " or ".join(f"{layout.images}/ and {layout.labels}/" for layout in _LAYOUTS)
    raise DataError(f"{folder}: is no data set in PASCAL VOC layout: expected {expected} in it")


def _read_names(path: Path) -> list[str]:
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error.reason}, byte {error.start})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(
            f"{path}: the split is empty; write one image name per line, without the suffix"
        )
    return names


# Cityscapes and Roboflow

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
    """A split, whose folder is `source`, as pairs of an image and a label image by their names."""

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
