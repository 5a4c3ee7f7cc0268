"""Data sets in COCO's JSON: instances, with polygons and run lengths, and panoptic annotations,
with PNGs of segment ids.

Source: https://cocodataset.org/#format-data
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ...runtime.encode.mask import LabelMap
from .files import (
    AS_USUAL,
    IGNORED,
    MAX_PIXELS,
    DataError,
    LabelledImages,
    ReadOptions,
    read_bytes,
)
from .label_images import read_rgb_png
from .masks import Runs, area_px, read_mask, unrolled

_PNG_NAME = r"^[^/\\]+\.png$"
Id = int | str


class Entry(BaseModel):
    """Frozen. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageEntry(Entry):
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: PositiveInt
    height: PositiveInt

    @model_validator(mode="after")
    def _is_within_bounds(self) -> Self:
        path = PurePosixPath(self.file_name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{self.file_name} leads out of the images' folder")
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(
                f"{self.file_name} has {self.width} x {self.height} pixels, the limit is "
                f"{MAX_PIXELS}"
            )
        return self


class CategoryEntry(Entry):
    id: int
    name: str


class AnnotationEntry(Entry):
    image_id: Id


class CocoDocument(Entry):
    images: tuple[ImageEntry, ...]
    categories: tuple[CategoryEntry, ...]
    annotations: tuple[AnnotationEntry, ...]


CocoKind = TypeVar("CocoKind", bound=CocoDocument)


def _read_coco(path: Path, kind: type[CocoKind], content: bytes | None = None) -> CocoKind:
    """Reads a COCO JSON file, or `content` that was made from other files. Raises DataError with
    every broken rule.
    """
    try:
        document = kind.model_validate_json(read_bytes(path) if content is None else content)
    except ValidationError as error:
        rules = [
            ": ".join(filter(None, (".".join(map(str, detail["loc"])), detail["msg"])))
            for detail in error.errors(include_input=False)
        ]
        raise DataError(*(f"{path}: {rule}" for rule in rules)) from error
    if not document.images:
        raise DataError(f"{path}: the split is empty: it lists no image")
    return document


class CocoImages(LabelledImages):
    """The images of a COCO JSON file. Their names are its `file_name`s.

    Args:
        path: the JSON file.
        images: the folder that the file names are relative to.
        categories: category name -> class id, 255 for categories to ignore.
        used: the ids of the categories that occur.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        document: CocoDocument,
        categories: Mapping[str, int],
        used: Set[int],
    ) -> None:
        self.source = path
        self.names = [image.file_name for image in document.images]
        self._folder = images
        self._images = {image.file_name: image for image in document.images}
        names = {category.id: category.name for category in document.categories}
        self._class_ids = {
            key: categories[name] for key, name in names.items() if name in categories
        }
        without_class = sorted(
            names.get(key, f"number {key}, which has no name")
            for key in used - self._class_ids.keys()
        )
        self._category_problems: list[str] = []
        if without_class:
            self._category_problems.append(
                f"{path}: in no class: {', '.join(without_class)}; name these categories in the "
                "class file by `from` or `ignore`"
            )
        self._problems = [*self._category_problems, *self._id_problems(document)]

    @property
    def split(self) -> str:
        return self.source.stem.removeprefix("instances_").removeprefix("panoptic_")

    def problems(self) -> Sequence[str]:
        return self._problems

    def _id_problems(self, document: CocoDocument) -> Sequence[str]:
        ids = Counter(image.id for image in document.images)
        repeated = ", ".join(str(key) for key, count in ids.items() if count > 1)
        unknown = sum(annotation.image_id not in ids for annotation in document.annotations)
        problems = [f"{self.source}: several images have the id {repeated}"] if repeated else []
        if unknown:
            problems.append(
                f"{self.source}: {unknown} annotations are of images that it does not list"
            )
        return problems

    def _class_of(self, category_id: int) -> int:
        """Raises DataError, with the message of `problems`, for a category without a class."""
        if category_id not in self._class_ids:
            raise DataError(*self._category_problems)
        return self._class_ids[category_id]


# Instances


class InstanceEntry(AnnotationEntry):
    """`segmentation` is validated when it is drawn, so that the error can name the image."""

    id: Id = "without id"
    category_id: int
    segmentation: Any = None
    iscrowd: bool | None = False


class InstancesDocument(CocoDocument):
    annotations: tuple[InstanceEntry, ...]


_ENTRIES = TypeAdapter(tuple[InstanceEntry, ...])


class _Region(NamedTuple):
    label: int
    is_crowd: bool
    runs: Runs


class CocoInstances(CocoImages):
    """The split of an `instances_*.json`.

    Pixels without an annotation are class 0. Where annotations overlap, the smallest wins; of two
    of equal size, the later one wins. Crowd regions are labelled 255 where there is no object.

    Args: as of `CocoImages`.
        content: a COCO document that was made from files of another tool.
        notes: unusual facts about that document, as lines of text.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        categories: Mapping[str, int],
        options: ReadOptions = AS_USUAL,
        content: bytes | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        document = _read_coco(path, InstancesDocument, content)
        used = {annotation.category_id for annotation in document.annotations}
        super().__init__(path, images, document, categories, used)
        self._options = options
        self._notes = notes
        self._entries = _packed(document)
        self._left_out: set[Id] = set()

    def paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / name, self.source

    def labels(self, name: str) -> LabelMap:
        image = self._images[name]
        entries = _ENTRIES.validate_json(self._entries.get(image.id, b"[]"))
        regions = [region for entry in entries if (region := self._region(image, entry))]
        columns = np.zeros(image.width * image.height, np.uint8)
        regions.sort(key=lambda region: (not region.is_crowd, -area_px(region.runs)))
        for region in regions:
            columns[unrolled(region.runs)] = region.label
        return np.ascontiguousarray(columns.reshape(image.width, image.height).T)

    def hint(self) -> str:
        has_crowds = any(b'"iscrowd":true' in entries for entries in self._entries.values())
        if self._options.crowds_as_objects or not has_crowds:
            return ""
        return "; annotations with iscrowd are ignored: --crowds objects reads them as objects"

    def notes(self) -> Sequence[str]:
        count = len(self._left_out)
        if not count:
            return self._notes
        return [*self._notes, f"{self.source}: {count} annotations left out, which are broken"]

    def _region(self, image: ImageEntry, entry: InstanceEntry) -> _Region | None:
        """None for an annotation that is left out."""
        class_id = self._class_of(entry.category_id)
        try:
            runs = read_mask(entry.segmentation, height_px=image.height, width_px=image.width)
        except ValueError as error:
            if self._options.skip_broken:
                self._left_out.add(entry.id)
                return None
            raise DataError(
                f"{self.source}: {image.file_name}, annotation {entry.id}: {error}"
            ) from error
        is_crowd = bool(entry.iscrowd) and not self._options.crowds_as_objects
        return _Region(IGNORED if is_crowd else class_id, is_crowd, runs)


def _packed(document: InstancesDocument) -> dict[Id, bytes]:
    """The annotations of each image as JSON, which needs a fraction of the memory, and which forked
    processes do not copy by counting references.
    """
    by_image: dict[Id, list[InstanceEntry]] = defaultdict(list)
    for entry in document.annotations:
        by_image[entry.image_id].append(entry)
    return {image_id: _ENTRIES.dump_json(tuple(entries)) for image_id, entries in by_image.items()}


# Panoptic annotations


class SegmentEntry(Entry):
    id: Annotated[int, Field(ge=0, lt=2**24)]
    category_id: int
    iscrowd: bool = False


class PanopticEntry(AnnotationEntry):
    file_name: Annotated[str, StringConstraints(pattern=_PNG_NAME)]
    segments_info: tuple[SegmentEntry, ...]


class PanopticDocument(CocoDocument):
    annotations: tuple[PanopticEntry, ...]


class CocoPanoptic(CocoImages):
    """The split of a `panoptic_*.json`. Its PNGs are next to it, in a folder of the same name.

    Pixels without a segment and crowd segments are labelled 255. Args: as of `CocoImages`.
    """

    def __init__(self, path: Path, images: Path, categories: Mapping[str, int]) -> None:
        document = _read_coco(path, PanopticDocument)
        used = {
            segment.category_id
            for annotation in document.annotations
            for segment in annotation.segments_info
        }
        super().__init__(path, images, document, categories, used)
        self._entries = {entry.image_id: entry for entry in document.annotations}

    def paths(self, name: str) -> tuple[Path, Path]:
        entry = self._entries.get(self._images[name].id)
        segments = self.source.with_suffix("") / entry.file_name if entry else self.source
        return self._folder / name, segments

    def labels(self, name: str) -> LabelMap:
        entry = self._entries.get(self._images[name].id)
        if entry is None:
            raise DataError(f"{self.source}: {name}: has no annotation")
        _, path = self.paths(name)
        # R + 256 G + 256^2 B is the segment's id.
        segment_ids = read_rgb_png(path).astype(np.int32) @ np.array([1, 256, 256**2], np.int32)
        ids, indices = np.unique(segment_ids, return_inverse=True)
        labels = {0: IGNORED} | {
            segment.id: IGNORED if segment.iscrowd else self._class_of(segment.category_id)
            for segment in entry.segments_info
        }
        unknown = [int(key) for key in ids if key not in labels]
        if unknown:
            raise DataError(f"{path}: {self.source} does not list the segments {unknown[:10]}")
        return np.array([labels[int(key)] for key in ids], np.uint8)[indices]
