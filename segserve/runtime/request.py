"""Parses a `SegmentRequest` from what a server provides: a body or form parts, and headers.

The image is the raw body, the part `data` or `body` of a multipart form, or base64 in the member
`data` of a JSON body. Options are `X-Segment-*` headers, form fields, or members beside `data`.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from pydantic import ValidationError

from ..schema.request import ClassName, MediaType, Options
from .errors import BadBase64Error, BadJSONError, BadOptionError, NoImageError, NotAcceptableError
from .record import ModelRecord

IMAGE_PARTS = ("data", "body")
OPTION_HEADER_PREFIX = "x-segment-"

# Far above any sensible request. Options are copied, compared and quoted in messages.
MAX_JSON_MEMBERS = 10_000
MAX_OPTION_CHARACTERS = 20_000
MAX_OPTION_VALUES = 2_000

_WHITESPACE = b" \t\n\r\v\f"
_CLASS_ID = re.compile(r"[0-9]{1,3}")


def parse_options(given: Mapping[str, object], defaults: Options) -> Options:
    """Validates the options of a request. The server's defaults apply to the options that it does
    not set.

    Raises:
        BadOptionError: an option is unknown, or its value is not allowed.
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


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an `Accept-Encoding` header allows gzip (RFC 9110, section 12.5.3)."""
    codings = dict(_media_range(part) for part in accept_encoding.split(","))
    return codings.get("gzip", 0.0) > 0


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


def class_ids(names: Iterable[ClassName] | None, record: ModelRecord) -> frozenset[int] | None:
    """Converts class names to ids. None, which means all classes, stays None.

    If a name is both a label and an id, the label wins.

    Raises:
        BadOptionError: the model has no such class; the message lists the model's classes.
    """
    return None if names is None else frozenset(_class_id(name, record) for name in names)


def _class_id(name: ClassName, record: ModelRecord) -> int:
    if name in record.labels:
        return record.labels.index(str(name))
    if _CLASS_ID.fullmatch(str(name)) and int(name) < len(record.classes):
        return int(name)
    known = ", ".join(f"{index} {label:.40}" for index, label in enumerate(record.labels))
    raise BadOptionError(f"option classes: got {name!r:.80}; the classes are: {known}")


@dataclass(frozen=True)
class SegmentRequest:
    """A validated request.

    Attributes:
        image: the encoded file, as it was sent.
        accepts_gzip: whether the response may be compressed.
    """

    image: bytes
    options: Options
    media_type: MediaType
    accepts_gzip: bool = False

    @property
    def with_confidence(self) -> bool:
        """Whether the response, which must be JSON, contains every pixel's probability."""
        return self.options.confidence and self.media_type is MediaType.JSON


def read_request(
    row: Mapping[str, object], headers: Mapping[str, object], defaults: Options
) -> SegmentRequest:
    """Reads one request.

    Args:
        row: the body as `{"body": content}`, or a form as `{part name: content}`. Content is bytes;
            TorchServe provides JSON parsed, and text as a string.
        headers: with names in any case.
        defaults: options that apply unless the request sets them.

    Raises:
        BadRequestError: there is no image, an option is invalid or does not suit the media type of
            the response, or JSON or base64 cannot be parsed.
        NotAcceptableError: the client accepts none of the available media types.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    media_type = str(lowered.get("content-type", "")).partition(";")[0]
    image, fields = _image_and_fields(row, "json" in media_type.lower())
    in_headers = {
        name.removeprefix(OPTION_HEADER_PREFIX): str(value).strip()
        for name, value in lowered.items()
        if name.startswith(OPTION_HEADER_PREFIX)
    }
    given = {**in_headers, **fields}
    for name, value in given.items():
        _check_option_size(name, value)
    options = parse_options(given, defaults)
    accept = lowered.get("accept")
    responded = negotiate(None if accept is None else str(accept))
    if "confidence" in given and options.confidence and responded is not MediaType.JSON:
        raise BadOptionError(
            f"option confidence: only {MediaType.JSON} can contain it, and Accept requests "
            f"{responded}; accept JSON with mask=png, or leave the option out"
        )
    gzip = accepts_gzip(str(lowered.get("accept-encoding", "")))
    return SegmentRequest(image, options, responded, gzip)


def _check_option_size(name: str, value: object) -> None:
    """Checks that an option is a text, a number or a flat list of these, and not too large."""
    values = value if isinstance(value, list) else [value]
    is_flat = all(item is None or isinstance(item, str | int | float) for item in values)
    characters = sum(len(item) for item in values if isinstance(item, str))
    if not is_flat or len(values) > MAX_OPTION_VALUES or characters > MAX_OPTION_CHARACTERS:
        raise BadOptionError(
            f"option {name!r:.40}: expected a text, a number or a list of at most "
            f"{MAX_OPTION_VALUES} of these, with {MAX_OPTION_CHARACTERS} characters at most; the "
            "image belongs in the part 'data'"
        )


def _image_and_fields(row: Mapping[str, object], is_json: bool) -> tuple[bytes, dict[str, object]]:
    part = next((name for name in IMAGE_PARTS if name in row), None)
    if part is None:
        raise NoImageError(f"no image: expected a body or a form part 'data', got {_names(row)}")
    content = row[part]
    others = ((name, value) for name, value in row.items() if name != part)
    fields: dict[str, object] = {name: _text(name, value) for name, value in others}
    if isinstance(content, str) and not is_json:
        content = content.encode("utf-8")
    if isinstance(content, bytes | bytearray | memoryview):
        content = bytes(content)
        if not is_json and not content.startswith(b"{"):
            return _not_empty(content), fields
        content = _parsed(content)
    image, members = _from_json(content)
    return image, {**members, **fields}


def _parsed(content: bytes) -> object:
    members = sum(content.count(mark) for mark in (b",", b"{", b"["))
    if members > MAX_JSON_MEMBERS:  # Python objects take thirty times the memory
        raise BadJSONError(
            f"the JSON holds {members} members, the limit is {MAX_JSON_MEMBERS}; only 'data' may "
            "be long"
        )
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadJSONError(f"the body is not JSON: {error}") from error


def _from_json(document: object) -> tuple[bytes, dict[str, object]]:
    if not isinstance(document, dict):
        raise BadJSONError(
            f'expected a JSON object like {{"data": "<base64>"}}, got {type(document).__name__}'
        )
    text = document.get("data")
    if text is None:
        raise NoImageError(
            f"no image: expected base64 in the member 'data', got {_names(document)}"
        )
    if not isinstance(text, str):
        raise BadBase64Error(f"member 'data': expected base64 text, got {type(text).__name__}")
    members = {name: value for name, value in document.items() if name != "data"}
    return _not_empty(_decoded(text)), members


def _decoded(text: str) -> bytes:
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except ValueError as error:
        raise BadBase64Error(f"member 'data' is not base64: {error}") from error


def _text(name: str, value: object) -> str:
    if not isinstance(value, bytes | bytearray | memoryview):
        return str(value).strip()
    try:
        return bytes(value).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadOptionError(
            f"form field {name!r:.40} is not text; the image belongs in the part 'data'"
        ) from error


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise NoImageError("no image: the body is empty")
    return image


def _names(row: Mapping[str, object]) -> str:
    return ", ".join(f"{name!r:.40}" for name in list(row)[:8]) or "nothing"
