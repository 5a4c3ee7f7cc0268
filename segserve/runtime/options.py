"""What a request may ask for: the options of one image and the media type of the answer."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import ValidationError

from .errors import BadOptionError, NotAcceptableError
from .record import Strict


class Options(Strict):
    """Options of one request.

    Attributes:
        mask: how the JSON answer holds the label map: rows of class ids, an indexed PNG, or not at all.
    """

    mask: Literal["dense", "png", "none"] = "dense"


class MediaType(StrEnum):
    """What an answer can be, the default first."""

    JSON = "application/json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    NPY = "application/x-npy"


def parse_options(given: Mapping[str, object], defaults: Options) -> Options:
    """The options of a request on top of the server's defaults.

    Raises:
        BadOptionError: an unknown option or a value that is not allowed; the message names what is.
    """
    unknown = sorted(given.keys() - Options.model_fields.keys())
    if unknown:
        raise BadOptionError(f"unknown option {', '.join(unknown)}; the options are: {', '.join(Options.model_fields)}")
    try:
        return Options.model_validate({**defaults.model_dump(), **given})
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(map(str, detail["loc"]))
        raise BadOptionError(f"option {name}: got {detail['input']!r:.80}; {detail['msg'].lower()}") from error


def negotiate(accept: str | None) -> MediaType:
    """The media type that an `Accept` header asks for (RFC 9110, section 12.5.1), JSON where it has none.

    Of types with the same quality, the one that is named first wins.

    Raises:
        NotAcceptableError: the header admits none of the types that can be answered.
    """
    ranges = [_media_range(part) for part in (accept or "*/*").split(",") if part.strip()]
    refused = {pattern for pattern, quality in ranges if quality == 0}
    for pattern, quality in sorted(ranges, key=lambda item: -item[1]):
        for media_type in MediaType:
            if quality > 0 and _matches(pattern, media_type) and media_type not in refused:
                return media_type
    raise NotAcceptableError(f"Accept: {accept!r:.80} admits none of the types on offer: {', '.join(MediaType)}")


def _media_range(part: str) -> tuple[str, float]:
    pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return pattern, float(quality)
    except ValueError:
        return pattern, 0.0


def _matches(pattern: str, media_type: MediaType) -> bool:
    return pattern in ("*/*", "*", media_type.value, f"{media_type.split('/')[0]}/*")
