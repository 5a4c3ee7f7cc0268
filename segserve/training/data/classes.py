"""The class file: what the classes of a data set are called, their colours, and which COCO
categories they take.

- background
- label: cat
  color: [64, 0, 0]         # by default PASCAL VOC's colour of that id
- label: vehicle
  from: [car, bus]          # COCO categories; by default the one that is called like the class

Where categories are to be left out, their pixels labelled 255, the list stands below a key:

classes: [...]
ignore: [kite, frisbee]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ...runtime.errors import ModelError
from ...runtime.record import ClassInfo, Strict, read_document
from .errors import DataError
from .labelled import IGNORED

_COLOR_BITS = 8


class ListedClass(ClassInfo):
    categories: Annotated[tuple[str, ...] | None, Field(alias="from")] = None


class ClassFile(Strict):
    """A class's id is its place in the list; class 0 also takes what no COCO annotation covers.

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
        """A list alone is that of the classes, a text alone is a label, and colours may be left
        out.
        """
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
                raise ValueError(f"{kind} {', '.join(repeated)} stands more than once")
        return self

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return tuple(ClassInfo(label=entry.label, color=entry.color) for entry in self.listed)

    @property
    def categories(self) -> dict[str, int]:
        """The class id of each COCO category by its name, 255 for those to ignore."""
        taken = {
            name: class_id
            for class_id, names in enumerate(self._categories_by_class())
            for name in names
        }
        return taken | dict.fromkeys(self.ignore, IGNORED)

    def _categories_by_class(self) -> list[tuple[str, ...]]:
        return [
            (entry.label,) if entry.categories is None else entry.categories
            for entry in self.listed
        ]

    def _category_names(self) -> list[str]:
        return [*(name for names in self._categories_by_class() for name in names), *self.ignore]


def read_class_file(path: Path) -> ClassFile:
    """Reads and checks a class file.

    Raises:
        DataError: the file is missing, is not YAML, or breaks a rule; all broken rules are named.
    """
    try:
        return read_document(path, ClassFile)
    except ModelError as error:
        raise DataError(str(error)) from error


def read_classes(path: Path) -> tuple[ClassInfo, ...]:
    """The classes alone; errors as in `read_class_file`."""
    return read_class_file(path).classes


def categories_of(classes: Sequence[ClassInfo]) -> Mapping[str, int]:
    """Without a class file: each class takes the COCO category that is called like it."""
    return {info.label: class_id for class_id, info in enumerate(classes)}


def voc_color(class_id: int) -> tuple[int, int, int]:
    """The colour of a class in PASCAL VOC's palette: from the lowest on, every three bits of the id
    are the next lower bit of red, green and blue.

    Source: VOClabelcolormap.m of the VOC development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/.
    """
    color = [0, 0, 0]
    for bit in range(3 * _COLOR_BITS):
        place, channel = divmod(bit, 3)
        color[channel] |= (class_id >> bit & 1) << (_COLOR_BITS - 1 - place)
    red, green, blue = color
    return red, green, blue
