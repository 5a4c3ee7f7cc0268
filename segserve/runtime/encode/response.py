"""Encodes a segmentation as the response body that the request selects."""

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from ...schema.request import MaskEncoding, MediaType
from ...schema.response import ClassRow
from ..errors import ResponseTooLargeError, SegserveError
from ..inference.labels import SegmentedImage
from ..record import ModelRecord
from ..request import SegmentRequest
from ..telemetry import RequestStats
from .mask import (
    LabelMap,
    dense_json_bytes,
    encode_grey_png,
    encode_jpeg,
    encode_npy,
    encode_png,
    encode_rle,
)
from .overlay import draw_overlay
from .polygons import encode_polygons


def json_bytes(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def class_rows(segmentation: SegmentedImage, record: ModelRecord) -> tuple[ClassRow, ...]:
    """The classes of an image, with the record's labels and colours."""
    named = ((area, record.classes[area.id]) for area in segmentation.classes)
    return tuple(ClassRow.of(area, info.label, info.color) for area, info in named)


class JsonResponse:
    """One segmentation, encoded for any `mask` and `confidence`.

    `rle` and `polygons` have one member for each entry of `classes`, including the background. So
    their members match the class table, and together they give the whole label map.
    """

    def __init__(self, segmentation: SegmentedImage, record: ModelRecord) -> None:
        self._segmentation = segmentation
        self._record = record
        self._texts: dict[str, bytes] = {}

    def size_bytes(self, mask: MaskEncoding, *, confidence: bool) -> int:
        """The size of `body` in bytes, computed without the rows of `dense`."""
        size = len(self._json(mask, confidence=confidence, has_rows=False))
        if mask != "dense":
            return size
        pixels_by_class = {area.id: area.pixels for area in self._segmentation.classes}
        return size + dense_json_bytes(pixels_by_class, self._segmentation.label_map.shape[0])

    def body(self, mask: MaskEncoding, *, confidence: bool) -> bytes:
        return self._json(mask, confidence=confidence, has_rows=True)

    def all_sizes(self, *, confidence: bool) -> dict[str, int]:
        """Size in bytes of every possible response, by the option that selects it."""
        label_map = self._segmentation.label_map
        sizes = {
            _json_name(mask, confidence=with_it): self.size_bytes(mask, confidence=with_it)
            for with_it in ((True, False) if confidence else (False,))
            for mask in get_args(MaskEncoding)
        }
        sizes[f"Accept: {MediaType.NPY}"] = len(encode_npy(label_map))
        sizes[f"Accept: {MediaType.PNG}"] = len(encode_png(label_map, self._record.palette))
        return sizes

    def _json(self, mask: MaskEncoding, *, confidence: bool, has_rows: bool) -> bytes:
        document = dict(self._head)
        if mask != "none":
            text = self._mask_text(mask) if has_rows or mask != "dense" else b""
            document["mask"] = {"encoding": mask, "data": orjson.Fragment(text)}
        if confidence:
            text = self._confidence_text
            document["confidence"] = {"encoding": "png", "data": orjson.Fragment(text)}
        return json_bytes(document)

    @cached_property
    def _head(self) -> dict[str, Any]:
        height_px, width_px = self._segmentation.label_map.shape
        return {
            "model": {"name": self._record.name, "version": self._record.version},
            "width": width_px,
            "height": height_px,
            "classes": [row.as_document() for row in class_rows(self._segmentation, self._record)],
        }

    def _mask_text(self, mask: MaskEncoding) -> bytes:
        """The JSON of `mask.data`, built once."""
        if mask not in self._texts:
            self._texts[mask] = self._encoded(mask)
        return self._texts[mask]

    def _encoded(self, mask: MaskEncoding) -> bytes:
        label_map = self._segmentation.label_map
        ids = [area.id for area in self._segmentation.classes]
        match mask:
            case "dense":
                return json_bytes(np.ascontiguousarray(label_map))
            case "png":
                return _base64_text(encode_png(label_map, self._record.palette))
            case "rle":
                return json_bytes(encode_rle(label_map, ids))
            case "polygons":
                return json_bytes(encode_polygons(label_map, ids))
            case "none":
                return b""

    @cached_property
    def _confidence_text(self) -> bytes:
        confidence_map = self._segmentation.confidence_map
        return b"" if confidence_map is None else _base64_text(encode_grey_png(confidence_map))


def _base64_text(content: bytes) -> bytes:
    return b'"' + base64.b64encode(content) + b'"'


JPEG_MAX_SIDE_PX = 65_500  # libjpeg's limit; the format itself allows 65,535

# A larger JSON body is compressed for clients that accept it. The rows of `dense` become a hundred
# times smaller in less time than servers and clients need to pass them on. Masks in `png` are
# smaller than this, and compressed already.
_COMPRESSED_FROM_BYTES = 2**16


@dataclass(frozen=True)
class Response:
    """The response to one client, with the statistics of its request.

    Attributes:
        content_encoding: `gzip` if the body is compressed, else empty.
    """

    body: bytes
    media_type: str
    status: int = 200
    phrase: str = "OK"
    stats: RequestStats | None = None
    content_encoding: str = ""

    @property
    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds per stage."""
        if self.stats is None:
            return ""
        timings = self.stats.timings
        described = {stage: f';desc="{text}"' for stage, text in timings.descriptions.items()}
        return ", ".join(
            f"{stage};dur={1000 * seconds:.2f}{described.get(stage, '')}"
            for stage, seconds in timings.seconds.items()
        )


def compressed(body: bytes, request: SegmentRequest) -> tuple[bytes, str]:
    """The body and its `Content-Encoding`: large JSON as gzip if the client accepts it."""
    large = request.media_type is MediaType.JSON and len(body) >= _COMPRESSED_FROM_BYTES
    if not (large and request.accepts_gzip):
        return body, ""
    return gzip.compress(body, compresslevel=1, mtime=0), "gzip"


def error_response(error: SegserveError, stats: RequestStats | None = None) -> Response:
    """The response to a request that failed with `error`. Stores the error code in `stats`."""
    if stats is not None:
        stats.error = error.code
    return Response(
        json_bytes(error.as_document()), MediaType.JSON, error.status, error.phrase, stats
    )


def encode_response(
    request: SegmentRequest,
    image_rgb: NDArray[np.uint8],
    segmentation: SegmentedImage,
    record: ModelRecord,
    max_bytes: int,
) -> bytes:
    """Encodes the response body.

    Raises:
        ResponseTooLargeError: the body is larger than `max_bytes`; the message lists the encodings
            that are small enough. Or the image is too large for JPEG.
    """
    in_json = JsonResponse(segmentation, record)
    if request.media_type is MediaType.JSON:
        mask, confidence = request.options.mask, request.with_confidence
        size_bytes = in_json.size_bytes(mask, confidence=confidence)
        if size_bytes > max_bytes:
            sizes = in_json.all_sizes(confidence=confidence)
            raise _too_large(_json_name(mask, confidence=confidence), size_bytes, sizes, max_bytes)
        return in_json.body(mask, confidence=confidence)
    if request.media_type is MediaType.PNG:
        body = encode_png(segmentation.label_map, record.palette)
    elif request.media_type is MediaType.NPY:
        body = encode_npy(segmentation.label_map)
    else:
        body = _overlay_jpeg(image_rgb, segmentation, record)
    if len(body) > max_bytes:
        sizes = in_json.all_sizes(confidence=False)
        raise _too_large(f"Accept: {request.media_type}", len(body), sizes, max_bytes)
    return body


def _overlay_jpeg(
    image_rgb: NDArray[np.uint8], segmentation: SegmentedImage, record: ModelRecord
) -> bytes:
    if max(image_rgb.shape[:2]) > JPEG_MAX_SIDE_PX:
        raise ResponseTooLargeError(
            f"a JPEG's sides end at {JPEG_MAX_SIDE_PX} pixels; request {MediaType.PNG} or "
            f"{MediaType.JSON}"
        )
    shown = [area.id for area in segmentation.classes]
    label_map = _reduced(segmentation.label_map, image_rgb.shape[:2])
    return encode_jpeg(draw_overlay(image_rgb, label_map, record.classes, shown))


def _reduced(label_map: LabelMap, size_hw: tuple[int, ...]) -> LabelMap:
    """The label map at the size of an image that was decoded at a fraction, by nearest pixel."""
    if label_map.shape == size_hw:
        return label_map
    rows, columns = (
        np.arange(reduced) * whole // reduced
        for reduced, whole in zip(size_hw, label_map.shape, strict=True)
    )
    reduced_map: LabelMap = label_map[rows[:, None], columns]
    return reduced_map


def _json_name(mask: str, *, confidence: bool) -> str:
    return f"mask={mask} confidence=true" if confidence else f"mask={mask}"


def _too_large(
    what: str, size_bytes: int, sizes: Mapping[str, int], max_bytes: int
) -> ResponseTooLargeError:
    fitting = [f"{name} ({size} bytes)" for name, size in sizes.items() if size <= max_bytes]
    return ResponseTooLargeError(
        f"the response as {what} would take {size_bytes} bytes, the limit is {max_bytes}; "
        f"these fit: {', '.join(fitting) or 'none, send a smaller image'}"
    )
