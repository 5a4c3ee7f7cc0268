"""The options of a request, and the media type of its response."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from .classes import ClassName, split_names
from .errors import BadOptionError, NotAcceptableError
from .inference.plan import Mode, Tta
from .record import Strict


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number from 0 to 1")
    return value


MaskEncoding = Literal["dense", "rle", "png", "polygons", "none"]

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

    mask: Annotated[
        MaskEncoding,
        Field(
            description=(
                "How the JSON answer holds the class of every pixel; other answers hold it their "
                "own way."
            )
        ),
    ] = "dense"
    classes: Annotated[
        tuple[ClassName, ...] | None,
        BeforeValidator(split_names),
        WithJsonSchema(_CLASSES_SCHEMA),
        Field(
            description=(
                "Labels or ids to keep, a list or separated by commas; pixels of others become "
                "background."
            )
        ),
    ] = None
    threshold: Annotated[
        float,
        BeforeValidator(_not_a_bool),
        Field(ge=0, le=1, description="A pixel whose top probability is lower becomes background."),
    ] = 0.0
    confidence: Annotated[
        bool,
        Field(
            description=(
                "Whether a JSON answer holds the top probability of every pixel, as a grey PNG."
            )
        ),
    ] = False
    mode: Annotated[
        Mode,
        Field(
            description=(
                "The image whole, or in overlapping tiles at its own resolution where that is the "
                "finer."
            )
        ),
    ] = "whole"
    tta: Annotated[
        Tta,
        Field(
            description=(
                "Test-time augmentation: an average over mirror images, or over these at several "
                "sizes too."
            )
        ),
    ] = "none"


class MediaType(StrEnum):
    """The media types of responses, the default first."""

    JSON = "application/json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    NPY = "application/x-npy"


def parse_options(given: Mapping[str, object], defaults: Options) -> Options:
    """Validates the options of a request. The server's defaults apply to the options that it does
    not set.

    Raises:
        BadOptionError: an option is unknown, or its value is not allowed; the message names what is
            allowed.
    """
    unknown = sorted(given.keys() - Options.model_fields.keys())
    if unknown:
        names = ", ".join(f"{name!r:.40}" for name in unknown[:8])
        raise BadOptionError(
            f"unknown option {names}; the options are: {', '.join(Options.model_fields)}"
        )
    try:
        return Options.model_validate({**defaults.model_dump(), **given})
    except ValidationError as error:
        detail = error.errors()[0]
        reason = detail["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        raise BadOptionError(
            f"option {detail['loc'][0]}: got {detail['input']!r:.80}; {reason}"
        ) from error


def negotiate(accept: str | None) -> MediaType:
    """Selects the media type for an `Accept` header (RFC 9110, section 12.5.1). Without the header
    it is JSON.

    The most specific range decides about a type. Of types with the same quality, the one that the
    header names first wins.

    Raises:
        NotAcceptableError: the header accepts none of the available types.
    """
    ranges = [_media_range(part) for part in (accept or "*/*").split(",") if part.strip()]
    media_type = max(MediaType, key=lambda offered: _rank(offered, ranges))
    if _rank(media_type, ranges)[0] == 0:
        raise NotAcceptableError(
            f"Accept: {accept!r:.80} admits none of the types on offer: {', '.join(MediaType)}"
        )
    return media_type


def _media_range(part: str) -> tuple[str, float]:
    """A media range and its quality. A quality outside 0..1 counts as 0."""
    pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
    text = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        quality = float(text)
    except ValueError:
        quality = 0.0
    return "*/*" if pattern == "*" else pattern, quality if 0 <= quality <= 1 else 0.0


def _rank(media_type: MediaType, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """The quality of a type, and minus the position in the header of the range that sets it."""
    for pattern in (media_type.value, f"{media_type.split('/')[0]}/*", "*/*"):
        for place, (given, quality) in enumerate(ranges):
            if given == pattern:
                return quality, -place
    return 0.0, 0
