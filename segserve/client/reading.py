"""Converts a JSON response to a `Segmentation`. A contradictory response raises an error."""

import base64
import binascii
import io
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import MalformedResponseError
from .reply import HttpResponse, raise_for_error
from .segmentation import Segmentation
from .share import ClassShare

Byte = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    """A part of a response. Unknown members are ignored, because a newer server may send more."""

    model_config = ConfigDict(extra="ignore")


class _Class(_Part):
    id: Byte
    label: str
    color: tuple[Byte, Byte, Byte]
    pixels: Annotated[int, Field(ge=1)]
    fraction: float
    box: tuple[int, int, int, int]
    confidence: float


class _Picture(_Part):
    encoding: str
    data: str


class _Model(_Part):
    name: str
    version: str


class _Answer(_Part):
    model: _Model
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    classes: tuple[_Class, ...]
    mask: _Picture
    confidence: _Picture | None = None


def read_segmentation(response: HttpResponse, image_file: bytes) -> Segmentation:
    """Reads the segmentation from the JSON response to a request with `mask=png`.

    Raises:
        ResponseError: the server sent an error response.
        MalformedResponseError: the response is not a segmentation, or its parts contradict each
            other.
    """
    raise_for_error(response)
    try:
        answer = _Answer.model_validate_json(response.body)
    except ValidationError as error:
        raise MalformedResponseError(_what_is_wrong(response, error)) from error
    size_wh = answer.width, answer.height
    mask = _decoded(answer.mask, size_wh, "mask", modes=("P", "L"))
    _check_counts(mask, answer.classes)
    confidence = answer.confidence and _decoded(
        answer.confidence, size_wh, "confidence", modes=("L",)
    )
    return Segmentation(
        label_map=_pixels(mask),
        classes=tuple(_share(entry) for entry in answer.classes),
        model=answer.model.name,
        model_version=answer.model.version,
        palette=bytes(mask.getpalette("RGB") or ()),
        image_file=image_file,
        confidence_map=_pixels(confidence) if confidence else None,
        timings_ms=response.timings_ms,
    )


def _share(entry: _Class) -> ClassShare:
    return ClassShare(
        entry.id,
        entry.label,
        entry.color,
        entry.pixels,
        entry.fraction,
        entry.box,
        entry.confidence,
    )


def _decoded(
    picture: _Picture, size_wh: tuple[int, int], name: str, *, modes: tuple[str, ...]
) -> Image.Image:
    """Decodes the base64 PNG of a response. Raises an error if its size or its mode is wrong."""
    if picture.encoding != "png":
        raise MalformedResponseError(
            f"expected a {name} encoded as png, got {picture.encoding!r:.40}"
        )
    try:
        content = base64.b64decode(picture.data, validate=True)
    except binascii.Error as error:
        raise MalformedResponseError(f"the server's {name} is not base64: {error}") from error
    try:
        decoded = Image.open(io.BytesIO(content), formats=("PNG",))
        if decoded.size != size_wh or decoded.mode not in modes:
            expected, got = ("{} x {} pixels".format(*size) for size in (size_wh, decoded.size))
            raise MalformedResponseError(
                f"expected a {name} of {expected} and mode {modes[0]}, got {got} and {decoded.mode}"
            )
        decoded.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # SyntaxError: invalid chunk
        raise MalformedResponseError(f"the server's {name} cannot be decoded: {error}") from error
    return decoded


def _check_counts(mask: Image.Image, classes: tuple[_Class, ...]) -> None:
    counted = {class_id: pixels for class_id, pixels in enumerate(mask.histogram()) if pixels}
    told = {entry.id: entry.pixels for entry in classes}
    if counted != told or len(told) != len(classes):
        raise MalformedResponseError(
            f"the server's mask and its classes disagree: pixels {counted} and {told}"[:300]
        )


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.asarray(picture)
    pixels.flags.writeable = False
    return pixels


def _what_is_wrong(response: HttpResponse, error: ValidationError) -> str:
    detail: Any = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, detail["loc"])) or response.headers.get(
        "content-type", "unknown type"
    )
    return (
        f"the response is not a segmentation ({where}: {detail['msg'].lower()}): "
        "is the address that of its inference port?"
    )
