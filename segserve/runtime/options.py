"""Validates the options of a request, and negotiates the media type of its response."""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from ..schema.request import MediaType, Options
from .errors import BadOptionError, NotAcceptableError


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
            f"Accept: {accept!r:.80} accepts none of the available types: {', '.join(MediaType)}"
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
        for position, (given, quality) in enumerate(ranges):
            if given == pattern:
                return quality, -position
    return 0.0, 0
