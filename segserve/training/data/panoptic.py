"""COCO panoptic annotations: PNGs of segment ids, and a JSON that says what each segment is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from ...runtime.encode.mask import LabelMap
from .coco_json import AnnotationEntry, CocoDocument, CocoImages, Entry, read_coco
from .errors import DataError
from .files import read_rgb_png
from .labelled import IGNORED

_PNG_NAME = r"^[^/\\]+\.png$"


class SegmentEntry(Entry):
    id: Annotated[int, Field(ge=0, lt=2**24)]
    category_id: int
    iscrowd: bool = False


class PanopticEntry(AnnotationEntry):
    file_name: Annotated[str, StringConstraints(pattern=_PNG_NAME)]
    segments_info: tuple[SegmentEntry, ...]

    @property
    def category_ids(self) -> Sequence[int]:
        return tuple(segment.category_id for segment in self.segments_info)


class PanopticDocument(CocoDocument):
    annotations: tuple[PanopticEntry, ...]


class CocoPanoptic(CocoImages):
    """The split of a `panoptic_*.json`; the PNGs lie beside it in a folder of the same name.

    Pixels without a segment and crowd segments are labelled 255.

    Args: as in `CocoImages`.

    Raises:
        DataError: the JSON file is missing, or is none of panoptic annotations.
    """

    def __init__(self, path: Path, images: Path, categories: Mapping[str, int]) -> None:
        document = read_coco(path, PanopticDocument)
        super().__init__(path, images, document, categories)
        self._entries = {entry.image_id: entry for entry in document.annotations}

    def paths(self, name: str) -> tuple[Path, Path]:
        entry = self._entries.get(self._images[name].id)
        return self._folder / name, self.source.with_suffix(
            ""
        ) / entry.file_name if entry else self.source

    def labels(self, name: str) -> LabelMap:
        entry = self._entries.get(self._images[name].id)
        if entry is None:
            raise DataError(f"{self.source}: {name}: has no annotation")
        _, path = self.paths(name)
        ids, places = np.unique(_segment_ids(path), return_inverse=True)
        labels = self._labels_by_segment(entry)
        strangers = [int(key) for key in ids if key not in labels]
        if strangers:
            raise DataError(
                f"{path}: {self.source} does not say what the segments {strangers[:10]} are"
            )
        return np.array([labels[int(key)] for key in ids], np.uint8)[places]

    def _labels_by_segment(self, entry: PanopticEntry) -> dict[int, int]:
        labels = {
            segment.id: IGNORED if segment.iscrowd else self._class_of(segment.category_id)
            for segment in entry.segments_info
        }
        return {0: IGNORED} | labels


def _segment_ids(path: Path) -> NDArray[np.int32]:
    """int32 (H, W): R + 256 G + 256^2 B."""
    rgb = read_rgb_png(path).astype(np.int32)
    return rgb @ np.array([1, 256, 256**2], np.int32)
