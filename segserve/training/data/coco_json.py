"""What instance and panoptic annotations in COCO's JSON have in common: images, categories, and how
they are checked.

Source: https://cocodataset.org/#format-data
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from .errors import DataError
from .files import MAX_PIXELS, read_bytes
from .labelled import LabelledImages

Id = int | str


class Entry(BaseModel):
    """Frozen; keys that are not needed are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageEntry(Entry):
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: PositiveInt
    height: PositiveInt

    @model_validator(mode="after")
    def _is_within_bounds(self) -> Self:
        place = PurePosixPath(self.file_name)
        if place.is_absolute() or ".." in place.parts:
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

    @property
    @abstractmethod
    def category_ids(self) -> Sequence[int]: ...


class CocoDocument(Entry):
    images: tuple[ImageEntry, ...]
    categories: tuple[CategoryEntry, ...]
    annotations: tuple[AnnotationEntry, ...]


Document = TypeVar("Document", bound=CocoDocument)


def read_coco(path: Path, kind: type[Document]) -> Document:
    """Reads and checks a COCO JSON file.

    Raises:
        DataError: the file is missing, is not JSON, lacks a key or lists no image; all broken rules
            are named.
    """
    try:
        document = kind.model_validate_json(read_bytes(path))
    except ValidationError as error:
        rules = [
            (".".join(map(str, detail["loc"])), detail["msg"])
            for detail in error.errors(include_input=False)
        ]
        raise DataError(
            *(f"{path}: {f'{key}: ' if key else ''}{message}" for key, message in rules)
        ) from error
    if not document.images:
        raise DataError(f"{path}: the split is empty: it lists no image")
    return document


class CocoImages(LabelledImages):
    """The images of a COCO JSON file; their names are its `file_name`s.

    Args:
        path: the JSON file.
        images: folder that the file names start from.
        categories: the class id of each category by its name, 255 for those to ignore.
    """

    def __init__(
        self, path: Path, images: Path, document: CocoDocument, categories: Mapping[str, int]
    ) -> None:
        self.source = path
        self.names = [image.file_name for image in document.images]
        self._folder = images
        self._images = {image.file_name: image for image in document.images}
        names = {category.id: category.name for category in document.categories}
        self._class_ids = {
            key: categories[name] for key, name in names.items() if name in categories
        }
        used = {key for annotation in document.annotations for key in annotation.category_ids}
        self._untaken = sorted(
            names.get(key, f"number {key}, which has no name") for key in used - {*self._class_ids}
        )
        self._problems = [*self._about_categories(), *self._about_ids(document)]

    def problems(self) -> Sequence[str]:
        return self._problems

    def _about_categories(self) -> Sequence[str]:
        if not self._untaken:
            return []
        listed = ", ".join(self._untaken)
        return [
            f"{self.source}: in no class: {listed}; name these categories in the class file by "
            "`from` or `ignore`"
        ]

    def _about_ids(self, document: CocoDocument) -> Sequence[str]:
        ids = Counter(image.id for image in document.images)
        repeated = ", ".join(str(key) for key, count in ids.items() if count > 1)
        strangers = sum(annotation.image_id not in ids for annotation in document.annotations)
        return [
            *([f"{self.source}: several images have the id {repeated}"] if repeated else []),
            *(
                [f"{self.source}: {strangers} annotations are of images that it does not list"]
                if strangers
                else []
            ),
        ]

    def _class_of(self, category_id: int) -> int:
        """Raises DataError, worded as in `problems`, for a category that no class takes."""
        if category_id not in self._class_ids:
            raise DataError(*self._about_categories())
        return self._class_ids[category_id]
