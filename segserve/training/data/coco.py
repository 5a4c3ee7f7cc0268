"""COCO instances: polygons and run-length encoded masks, drawn into label maps."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import TypeAdapter

from ...runtime.encode.mask import LabelMap
from .coco_json import AnnotationEntry, CocoDocument, CocoImages, Id, ImageEntry, read_coco
from .errors import DataError
from .labelled import IGNORED
from .rle import Runs, area_px, read_runs, unrolled

_REACH = 2  # in image sides: coordinates further out are those of another image, and costly to draw


class InstanceEntry(AnnotationEntry):
    """`segmentation` is looked at when it is drawn, so that what is wrong with it is told with the
    image's name.
    """

    id: Id = "without id"
    category_id: int
    segmentation: Any = None
    iscrowd: bool = False

    @property
    def category_ids(self) -> Sequence[int]:
        return (self.category_id,)


class InstancesDocument(CocoDocument):
    annotations: tuple[InstanceEntry, ...]


_ENTRIES = TypeAdapter(tuple[InstanceEntry, ...])


class _Region(NamedTuple):
    label: int
    is_crowd: bool
    runs: Runs


class CocoInstances(CocoImages):
    """The split of an `instances_*.json`.

    Pixels that no annotation covers are class 0. Where several cover a pixel, the smallest wins,
    and of two that are as small the later one. Crowd regions are labelled 255 where nothing else
    is.

    Args: as in `CocoImages`.

    Raises:
        DataError: the JSON file is missing, or is none of instances.
    """

    def __init__(self, path: Path, images: Path, categories: Mapping[str, int]) -> None:
        document = read_coco(path, InstancesDocument)
        super().__init__(path, images, document, categories)
        self._entries = _packed(document)

    def paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / name, self.source

    def labels(self, name: str) -> LabelMap:
        image = self._images[name]
        entries = _ENTRIES.validate_json(self._entries.get(image.id, b"[]"))
        regions = [self._region(image, entry) for entry in entries]
        columns = np.zeros(image.width * image.height, np.uint8)
        for region in sorted(
            regions, key=lambda region: (not region.is_crowd, -area_px(region.runs))
        ):
            columns[unrolled(region.runs)] = region.label
        return np.ascontiguousarray(columns.reshape(image.width, image.height).T)

    def _region(self, image: ImageEntry, entry: InstanceEntry) -> _Region:
        class_id = self._class_of(entry.category_id)
        try:
            runs = _runs(entry.segmentation, image)
        except ValueError as error:
            raise DataError(
                f"{self.source}: {image.file_name}, annotation {entry.id}: {error}"
            ) from error
        return _Region(IGNORED if entry.iscrowd else class_id, entry.iscrowd, runs)


def _packed(document: InstancesDocument) -> dict[Id, bytes]:
    """The annotations of each image as JSON: a fraction of the memory, and nothing that forked
    processes would copy by counting references.
    """
    by_image: dict[Id, list[InstanceEntry]] = defaultdict(list)
    for entry in document.annotations:
        by_image[entry.image_id].append(entry)
    return {image_id: _ENTRIES.dump_json(tuple(entries)) for image_id, entries in by_image.items()}


def _runs(segmentation: object, image: ImageEntry) -> Runs:
    """Raises ValueError where the segmentation is none, or is not one of that image."""
    if isinstance(segmentation, dict):
        size_hw, expected_hw = segmentation.get("size"), [image.height, image.width]
        if size_hw != expected_hw:
            raise ValueError(
                f"expected a mask of `size` {expected_hw}, as the image has, got {size_hw}"
            )
        return read_runs(segmentation.get("counts"), height_px=image.height, width_px=image.width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            "expected polygons or run lengths, got no `segmentation`; a box alone says nothing of "
            "pixels"
        )
    polygons = [_polygon(points, image).tolist() for points in segmentation]
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, image.height, image.width))
    return read_runs(encoded["counts"], height_px=image.height, width_px=image.width)


def _polygon(points: object, image: ImageEntry) -> NDArray[np.float64]:
    """float64 (2 * points,): x and y in turn, in pixels."""
    try:
        xy = np.array(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("a polygon is no list of numbers") from error
    if xy.ndim != 1 or len(xy) < 6 or len(xy) % 2:
        raise ValueError(f"a polygon needs x and y of three points or more, got {xy.size} numbers")
    if not (np.abs(xy) <= _REACH * max(image.width, image.height)).all():
        raise ValueError(
            f"a polygon leads far out of the image, which has {image.width} x {image.height} pixels"
        )
    return xy
