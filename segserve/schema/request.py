"""The options of a request, and the media types of its response."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import from_json

from . import Strict, Unit

MaskEncoding = Literal["dense", "rle", "png", "polygons", "none"]
Mode = Literal["whole", "slide"]
Tta = Literal["none", "flip", "multiscale"]
Alpha = Literal["white", "ignore"]
ClassName = str | int
"""A class of the model, by label or id."""


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number from 0 to 1")
    return value


def split_names(value: object) -> object:
    """The class names in a JSON list, a text with commas, or a list, whose names are stripped.

    None is returned unchanged.

    Raises:
        ValueError: the value does not name classes.
    """
    if isinstance(value, str):
        value = _from_json(value) if value.lstrip().startswith("[") else value.split(",")
    if value is None:
        return value
    if not isinstance(value, list | tuple) or not all(type(name) in (str, int) for name in value):
        raise ValueError("expected labels or ids of classes, as a list or separated by commas")
    names = tuple(name.strip() if isinstance(name, str) else name for name in value)
    if not names or "" in names:
        raise ValueError(
            "expected at least one class, and none without a name; leave the option out for all "
            "classes"
        )
    return names


def _from_json(text: str) -> object:
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(
            f"expected a JSON list, because the text starts with a bracket: {error}"
        ) from error


_CLASSES_SCHEMA = {
    "anyOf": [
        {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]},
        },
        {"type": "string", "minLength": 1},
        {"type": "null"},
    ]
}


class Options(Strict):
    """The options of one request. The descriptions of the fields are those of the HTTP contract."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    mask: MaskEncoding = "dense"
    """Encoding of the label map in a JSON response."""
    classes: Annotated[
        tuple[ClassName, ...] | None, BeforeValidator(split_names), WithJsonSchema(_CLASSES_SCHEMA)
    ] = None
    """Labels or ids to keep, as a list or separated by commas; all others become background."""
    threshold: Annotated[Unit, BeforeValidator(_not_a_bool)] = 0.0
    """A pixel whose top probability is lower becomes background."""
    confidence: bool = False
    """Whether a JSON response contains every pixel's top probability, as a grey PNG."""
    mode: Mode = "whole"
    """The whole image at once, or overlapping tiles at its own resolution if that is higher."""
    tta: Annotated[
        Tta,
        Field(
            description="Test-time augmentation: the average over mirror images, or over mirror "
            "images at several scales."
        ),
    ] = "none"
    alpha: Alpha = "white"
    """Transparent pixels are read on a white background, or in their stored colours."""


class MediaType(StrEnum):
    """The media types of responses, the default first."""

    JSON = "application/json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    NPY = "application/x-npy"
