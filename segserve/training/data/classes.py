"""The class file: the names and colours of the classes of a data set, and their COCO categories.

- background
- label: cat
  color: [64, 0, 0]         # default: the PASCAL VOC colour of that id
- label: vehicle
  from: [car, bus]          # COCO categories; default: the category with the label of the class

To ignore the pixels of some categories (label 255), write the list under a key:

classes: [...]
ignore: [kite, frisbee]
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ...runtime.errors import ModelError
from ...runtime.record import ClassInfo, Strict, read_document, voc_color
from .files import IGNORED, DataError


class ListedClass(ClassInfo):
    categories: Annotated[tuple[str, ...] | None, Field(alias="from")] = None


class ClassFile(Strict):
    """The id of a class is its index in the list. Pixels without a COCO annotation are class 0.

    Attributes:
        ignore: COCO categories whose pixels belong to no class.
    """

    listed: Annotated[
        tuple[ListedClass, ...], Field(alias="classes", min_length=2, max_length=IGNORED)
    ]
    ignore: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, content: object) -> object:
        """Accepts a plain list of classes, plain labels, and classes without a colour."""
        document = {"classes": content} if isinstance(content, list) else content
        if not isinstance(document, dict):
            raise ValueError("expected a list of classes")
        if not isinstance(document.get("classes"), list):
            return document
        entries = [
            {"label": entry} if isinstance(entry, str) else entry for entry in document["classes"]
        ]
        colored = [
            {"color": voc_color(class_id), **entry} if isinstance(entry, dict) else entry
            for class_id, entry in enumerate(entries)
        ]
        return {**document, "classes": colored}

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        for kind, names in (
            ("label", [entry.label for entry in self.listed]),
            ("category", self._category_names()),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{kind} {', '.join(repeated)} is listed more than once")
        return self

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return tuple(ClassInfo(label=entry.label, color=entry.color) for entry in self.listed)

    @property
    def categories(self) -> dict[str, int]:
        """COCO category -> class id, 255 for categories to ignore."""
        class_ids = {
            name: class_id
            for class_id, names in enumerate(self._categories_by_class())
            for name in names
        }
        return class_ids | dict.fromkeys(self.ignore, IGNORED)

    def _categories_by_class(self) -> list[tuple[str, ...]]:
        return [
            (entry.label,) if entry.categories is None else entry.categories
            for entry in self.listed
        ]

    def _category_names(self) -> list[str]:
        return [*(name for names in self._categories_by_class() for name in names), *self.ignore]


def read_class_file(path: Path) -> ClassFile:
    """Reads and validates a class file.

    Raises:
        DataError: the file is missing, is not YAML, or breaks rules. The error lists all of them.
    """
    try:
        return read_document(path, ClassFile)
    except ModelError as error:
        raise DataError(str(error)) from error
