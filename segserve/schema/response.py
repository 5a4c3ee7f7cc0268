"""Models of the server's responses: the source of the JSON Schema. `docs/api.md` describes how to
decode a mask.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt
from pydantic.json_schema import SkipJsonSchema

from ..runtime.errors import error_classes
from ..runtime.record import Byte, ModelRecord, Strict, Unit

ClassId = Byte
ClassKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
PngBase64 = Annotated[
    str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
]

_CLOSED: dict[str, JsonValue] = {"additionalProperties": False}


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("default")  # the member is absent, not null


class Model(Strict):
    """The model that answered."""

    name: str
    version: str


class ClassEntry(Strict):
    """One class of the image."""

    id: ClassId
    label: str
    color: Annotated[tuple[Byte, Byte, Byte], Field(description="Red, green, blue.")]
    pixels: Annotated[PositiveInt, Field(description="How many pixels have this class.")]
    fraction: Annotated[Unit, Field(description="Their share of the image.")]
    box: Annotated[
        tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt],
        Field(description="x_min, y_min, x_max, y_max in pixels, maxima exclusive."),
    ]
    confidence: Annotated[Unit, Field(description="Mean of the top probability of these pixels.")]


class DenseMask(Strict):
    encoding: Literal["dense"]
    data: Annotated[list[list[ClassId]], Field(description="`height` rows of `width` class ids.")]


class PngMask(Strict):
    encoding: Literal["png"]
    data: Annotated[
        PngBase64,
        Field(description="An indexed PNG: pixel value = class id, palette = class colours."),
    ]


class Rle(Strict):
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(description="Height, width.")]
    counts: Annotated[
        str, Field(min_length=1, description="COCO's compressed run lengths, down the columns.")
    ]


class RleMask(Strict):
    encoding: Literal["rle"]
    data: Annotated[
        dict[ClassKey, Rle],
        Field(json_schema_extra=_CLOSED, description="By class id, for every entry of `classes`."),
    ]


Polygon = Annotated[
    list[NonNegativeInt], Field(min_length=8, description="x0, y0, x1, y1, ...: corners of pixels.")
]


class PolygonsMask(Strict):
    encoding: Literal["polygons"]
    data: Annotated[
        dict[ClassKey, Annotated[list[Polygon], Field(min_length=1)]],
        Field(
            json_schema_extra=_CLOSED,
            description="By class id, for every entry of `classes`; "
            "holes are cut open along a line.",
        ),
    ]


Mask = Annotated[DenseMask | RleMask | PngMask | PolygonsMask, Field(discriminator="encoding")]


class ConfidenceMap(Strict):
    encoding: Literal["png"]
    data: Annotated[
        PngBase64,
        Field(description="A grey PNG of 8 bits: the pixel's top probability is value / 255."),
    ]


class SegmentationResponse(Strict):
    """What is in an image: the classes, and the class of every pixel in the encoding that was asked
    for.
    """

    model: Model
    width: Annotated[
        PositiveInt, Field(description="Pixels, after the image's EXIF orientation is applied.")
    ]
    height: Annotated[
        PositiveInt, Field(description="Pixels, after the image's EXIF orientation is applied.")
    ]
    classes: Annotated[
        tuple[ClassEntry, ...],
        Field(min_length=1, description="All that are present, largest first."),
    ]
    mask: Annotated[
        Mask | SkipJsonSchema[None],
        Field(json_schema_extra=_optional, description="Missing with `mask=none`."),
    ] = None
    confidence: Annotated[
        ConfidenceMap | SkipJsonSchema[None],
        Field(json_schema_extra=_optional, description="There with `confidence=true`."),
    ] = None


class ErrorDetail(Strict):
    code: Annotated[
        str,
        Field(
            description="For programs.",
            json_schema_extra=lambda schema: schema.update(
                enum=list(dict.fromkeys(k.code for k in error_classes()))
            ),
        ),
    ]
    message: Annotated[
        str, Field(description="For people: what is wrong, what was expected, what to do.")
    ]


class Error(Strict):
    """A refusal by the model's handler."""

    error: ErrorDetail


class ServerError(Strict):
    """A refusal by TorchServe, before any handler sees the request."""

    code: int
    type: str
    message: str


class Limits(Strict):
    max_image_pixels: PositiveInt
    max_response_bytes: PositiveInt
    max_cost: Annotated[
        PositiveInt, Field(description="Passes through the network that one request may take.")
    ]


class Description(ModelRecord):
    """What the model is, knows and accepts: its record, and what the server adds."""

    options: dict[str, JsonValue]
    media_types: list[str]
    image_formats: list[str]
    limits: Limits
    device: str
    precision: str
