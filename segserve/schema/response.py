"""Models of the server's responses. Clients validate responses with them; the server writes its
masks without them, because they are large. `docs/api.md` describes how to decode a mask.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt
from pydantic.json_schema import SkipJsonSchema

from . import Byte, Part, Unit

ClassId = Byte
ClassKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
PngBase64 = Annotated[
    str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
]

_CLOSED: dict[str, JsonValue] = {"additionalProperties": False}


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("default")  # the member is absent, not null


class ServedModel(Part):
    """The model that created the response."""

    name: str
    version: str


class _ClassName(Part):
    id: ClassId
    label: str
    color: tuple[Byte, Byte, Byte]
    """Red, green, blue."""


class ClassArea(Part):
    """The pixels of one class in an image."""

    id: ClassId
    pixels: PositiveInt
    """The number of pixels of this class."""
    fraction: Unit
    """These pixels as a fraction of the image."""
    box_xyxy: Annotated[
        tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt], Field(alias="box")
    ]
    """x_min, y_min, x_max, y_max in pixels, maxima exclusive."""
    confidence: Unit
    """Mean of the top probability of these pixels."""


class ClassRow(ClassArea, _ClassName):
    """One class of an image."""

    @classmethod
    def of(cls, area: ClassArea, label: str, color: tuple[int, int, int]) -> Self:
        """The row of a response: the class's name, and its numbers rounded."""
        rounded = {"fraction": round(area.fraction, 6), "confidence": round(area.confidence, 4)}
        return cls(**{**dict(area), **rounded}, label=label, color=color)

    def as_document(self) -> dict[str, Any]:
        """The row as a member of `classes` in JSON."""
        return self.model_dump(by_alias=True)


class DenseMask(Part):
    encoding: Literal["dense"]
    data: list[list[ClassId]]
    """`height` rows of `width` class ids."""


class PngMask(Part):
    encoding: Literal["png"]
    data: PngBase64
    """An indexed PNG: pixel value = class id, palette = class colours."""


class RunLengths(Part):
    size: tuple[PositiveInt, PositiveInt]
    """Height, width."""
    counts: Annotated[str, Field(min_length=1)]
    """COCO's compressed run lengths, down the columns."""


class RleMask(Part):
    encoding: Literal["rle"]
    data: Annotated[dict[ClassKey, RunLengths], Field(json_schema_extra=_CLOSED)]
    """By class id, for every entry of `classes`."""


Polygon = Annotated[
    list[NonNegativeInt], Field(min_length=8, description="x0, y0, x1, y1, ...: corners of pixels.")
]


class PolygonsMask(Part):
    encoding: Literal["polygons"]
    data: Annotated[
        dict[ClassKey, Annotated[list[Polygon], Field(min_length=1)]],
        Field(json_schema_extra=_CLOSED),
    ]
    """By class id, for every entry of `classes`; holes are cut open along a line."""


Mask = Annotated[DenseMask | RleMask | PngMask | PolygonsMask, Field(discriminator="encoding")]


class ConfidenceMap(Part):
    encoding: Literal["png"]
    data: PngBase64
    """A grey PNG with 8 bits per pixel: top probability = value / 255."""


class SegmentationResponse(Part):
    """The classes of an image, and the class of every pixel in the requested encoding."""

    model: ServedModel
    width: PositiveInt
    """Pixels, after the image's EXIF orientation is applied."""
    height: PositiveInt
    """Pixels, after the image's EXIF orientation is applied."""
    classes: Annotated[tuple[ClassRow, ...], Field(min_length=1)]
    """All classes present, largest first."""
    mask: Annotated[Mask | SkipJsonSchema[None], Field(json_schema_extra=_optional)] = None
    """Missing with `mask=none`."""
    confidence: Annotated[
        ConfidenceMap | SkipJsonSchema[None], Field(json_schema_extra=_optional)
    ] = None
    """Present with `confidence=true`."""


class ErrorDetail(Part):
    code: str
    """For programs."""
    message: str
    """For people: what is wrong, what was expected, what to do."""


class ErrorBody(Part):
    """The body of an error response of the model's handler."""

    error: ErrorDetail


class TorchServeError(Part):
    """The body of an error response of TorchServe, sent before any handler runs."""

    code: int
    type: str
    message: str


class PngResponse(SegmentationResponse):
    """The response to `mask=png`, which clients request."""

    mask: PngMask
