"""Data sets in PASCAL VOC layout: images, label PNGs and split lists.

DATA/images/NAME.jpg    or .jpeg, .png, .webp, .bmp, .tif, .tiff
DATA/labels/NAME.png    8-bit grey or palette PNG: pixel value = class id, 255 for pixels to ignore
DATA/SPLIT.txt          one NAME per line

The folders may also have the original names: JPEGImages, SegmentationClass and
ImageSets/Segmentation.
"""

from pathlib import Path
from typing import NamedTuple

from ...runtime.encode.mask import LabelMap
from .files import DataError, LabelledImages, read_bytes, read_label_png

_LOWER = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SUFFIXES = (*_LOWER, *(suffix.upper() for suffix in _LOWER))


class _VocLayout(NamedTuple):
    """Folders within the data set."""

    images: str
    labels: str
    lists: str


_LAYOUTS = (
    _VocLayout("images", "labels", "."),
    _VocLayout("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
)


class VocFolder(LabelledImages):
    """One split of a folder in PASCAL VOC layout.

    Args:
        folder: the data set.
        split: the name of a list in the folder, or the path of a .txt list.

    Raises:
        DataError: the folder has another layout, or the list is missing or empty.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self._layout = _layout_of(folder)
        self.source = (
            Path(split) if split.endswith(".txt") else folder / self._layout.lists / f"{split}.txt"
        )
        self.names = _read_names(self.source)

    def paths(self, name: str) -> tuple[Path, Path]:
        images = self.folder / self._layout.images
        candidates = (images / f"{name}{suffix}" for suffix in _SUFFIXES)
        image = next((path for path in candidates if path.is_file()), images / f"{name}.jpg")
        return image, self.folder / self._layout.labels / f"{name}.png"

    def labels(self, name: str) -> LabelMap:
        return read_label_png(self.folder / self._layout.labels / f"{name}.png")


def _layout_of(folder: Path) -> _VocLayout:
    for layout in _LAYOUTS:
        if (folder / layout.images).is_dir():
            return layout
    expected = " or ".join(f"{layout.images}/ and {layout.labels}/" for layout in _LAYOUTS)
    below = [
        path
        for path in sorted(folder.iterdir())
        if any((path / layout.images).is_dir() for layout in _LAYOUTS)
    ]
    # The published archive is VOCdevkit/VOC2012.
    hint = f"; there is one in {', '.join(map(str, below))}" if below else ""
    raise DataError(
        f"{folder}: is no data set in PASCAL VOC layout: expected {expected} in it{hint}"
    )


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        lists = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: there is no such split list; lists in that folder: {lists}")
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
