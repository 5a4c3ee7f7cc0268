"""Encodes a segmentation as a response body, in the media type and encoding that the request
selects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...schema.request import MaskEncoding, MediaType
from ..errors import ResponseTooLargeError, SegserveError
from ..inference.labels import Segmentation
from ..record import ModelRecord
from ..request import SegmentRequest
from ..telemetry.request_stats import RequestStats
from .json_response import JsonResponse, json_bytes
from .mask import LabelMap, encode_jpeg, encode_npy, encode_png
from .overlay import draw_overlay

JPEG_MAX_SIDE_PX = 65_500  # libjpeg's limit; the format itself allows 65,535


@dataclass(frozen=True)
class Response:
    """The response to one client, with the statistics of its request."""

    body: bytes
    media_type: str
    status: int = 200
    phrase: str = "OK"
    stats: RequestStats | None = None

    @property
    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds per stage, with a description where a stage has
        one.
        """
        if self.stats is None:
            return ""
        timings = self.stats.timings
        return ", ".join(
            f"{stage};dur={1000 * seconds:.2f}"
            + (f';desc="{timings.descriptions[stage]}"' if stage in timings.descriptions else "")
            for stage, seconds in timings.seconds.items()
        )


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
    segmentation: Segmentation,
    record: ModelRecord,
    max_bytes: int,
) -> bytes:
    """Encodes the response body.

    Raises:
        ResponseTooLargeError: the body is larger than `max_bytes`; the message lists the encodings
            that are small enough. Or the image is too large for JPEG.
    """
    label_map = segmentation.label_map
    in_json = JsonResponse(segmentation, record)
    if request.media_type is MediaType.JSON:
        return _json_body(request, in_json, label_map, record, max_bytes)
    if request.media_type is MediaType.PNG:
        body = encode_png(label_map, record.palette)
    elif request.media_type is MediaType.NPY:
        body = encode_npy(label_map)
    else:
        body = _overlay_jpeg(image_rgb, segmentation, record)
    if len(body) > max_bytes:
        sizes = _sizes(in_json, label_map, record, confidence=False)
        raise _too_large(f"Accept: {request.media_type}", len(body), sizes, max_bytes)
    return body


def _overlay_jpeg(
    image_rgb: NDArray[np.uint8], segmentation: Segmentation, record: ModelRecord
) -> bytes:
    if max(image_rgb.shape[:2]) > JPEG_MAX_SIDE_PX:
        raise ResponseTooLargeError(
            f"a JPEG's sides end at {JPEG_MAX_SIDE_PX} pixels; request {MediaType.PNG} or "
            f"{MediaType.JSON}"
        )
    shown = [area.id for area in segmentation.classes]
    return encode_jpeg(draw_overlay(image_rgb, segmentation.label_map, record.classes, shown))


def _json_body(
    request: SegmentRequest,
    in_json: JsonResponse,
    label_map: LabelMap,
    record: ModelRecord,
    max_bytes: int,
) -> bytes:
    mask, confidence = request.options.mask, request.with_confidence
    size_bytes = in_json.size_bytes(mask, confidence=confidence)
    if size_bytes > max_bytes:
        sizes = _sizes(in_json, label_map, record, confidence=confidence)
        raise _too_large(_json_name(mask, confidence=confidence), size_bytes, sizes, max_bytes)
    return in_json.body(mask, confidence=confidence)


def _json_name(mask: str, *, confidence: bool) -> str:
    return f"mask={mask} confidence=true" if confidence else f"mask={mask}"


def _sizes(
    in_json: JsonResponse, label_map: LabelMap, record: ModelRecord, *, confidence: bool
) -> dict[str, int]:
    """Size in bytes of every possible response for this image, keyed by the option that selects
    it.
    """
    in_json_sizes = {
        _json_name(mask, confidence=with_it): in_json.size_bytes(mask, confidence=with_it)
        for with_it in ((True, False) if confidence else (False,))
        for mask in get_args(MaskEncoding)
    }
    return {
        **in_json_sizes,
        f"Accept: {MediaType.NPY}": len(encode_npy(label_map)),
        f"Accept: {MediaType.PNG}": len(encode_png(label_map, record.palette)),
    }


def _too_large(
    what: str, size_bytes: int, sizes: Mapping[str, int], max_bytes: int
) -> ResponseTooLargeError:
    fitting = [f"{name} ({size} bytes)" for name, size in sizes.items() if size <= max_bytes]
    return ResponseTooLargeError(
        f"the response as {what} would take {size_bytes} bytes, the limit is {max_bytes}; "
        f"these fit: {', '.join(fitting) or 'none, send a smaller image'}"
    )
