"""From a segmentation to the bytes of the answer, in the media type and encoding that the request asked for."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import orjson
from numpy.typing import NDArray

from .errors import AnswerTooLargeError, SegserveError
from .mask import dense_json_bytes, encode_jpeg, encode_npy, encode_png
from .options import MediaType
from .overlay import draw_overlay
from .record import ModelRecord
from .request import SegmentRequest
from .segmenter import ClassSummary, Segmentation

JPEG_MAX_SIDE_PX = 65_500  # the format's own limit, as libjpeg draws it


@dataclass(frozen=True)
class Answer:
    """What goes back to one client."""

    body: bytes
    media_type: str
    status: int = 200
    phrase: str = "OK"
    seconds: Mapping[str, float] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds by stage, and a description where a stage has one."""
        return ", ".join(
            f"{stage};dur={1000 * seconds:.2f}"
            + (f';desc="{self.descriptions[stage]}"' if stage in self.descriptions else "")
            for stage, seconds in self.seconds.items()
        )


def json_bytes(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def error_answer(error: SegserveError, seconds: Mapping[str, float]) -> Answer:
    return Answer(json_bytes(error.as_document()), MediaType.JSON, error.status, error.phrase, seconds)


def encode_answer(
    request: SegmentRequest,
    image_rgb: NDArray[np.uint8],
    segmentation: Segmentation,
    record: ModelRecord,
    max_bytes: int,
) -> bytes:
    """The body of the answer.

    Raises:
        AnswerTooLargeError: it would pass `max_bytes`; the message names the encodings that fit.
    """
    label_map = segmentation.label_map
    if request.media_type is MediaType.PNG:
        body = encode_png(label_map, record.palette)
    elif request.media_type is MediaType.NPY:
        body = encode_npy(label_map)
    elif request.media_type is MediaType.JPEG:
        body = _overlay_jpeg(image_rgb, segmentation, record)
    else:
        return _json_answer(request.options.mask, segmentation, record, max_bytes)
    if len(body) > max_bytes:
        raise _too_large(f"Accept: {request.media_type}", len(body), segmentation, record, max_bytes)
    return body


def _overlay_jpeg(image_rgb: NDArray[np.uint8], segmentation: Segmentation, record: ModelRecord) -> bytes:
    if max(image_rgb.shape[:2]) > JPEG_MAX_SIDE_PX:
        raise AnswerTooLargeError(
            f"a JPEG's sides end at {JPEG_MAX_SIDE_PX} pixels; ask for {MediaType.PNG} or {MediaType.JSON}"
        )
    shown = [summary.class_id for summary in segmentation.classes]
    return encode_jpeg(draw_overlay(image_rgb, segmentation.label_map, record.classes, shown))


def _json_answer(encoding: str, segmentation: Segmentation, record: ModelRecord, max_bytes: int) -> bytes:
    document = _document(segmentation, record)
    png = encode_png(segmentation.label_map, record.palette) if encoding == "png" else b""
    size_bytes = _json_size(encoding, document, segmentation, len(png))
    if size_bytes > max_bytes:  # told before the rows of a large image are made
        raise _too_large(f"mask={encoding}", size_bytes, segmentation, record, max_bytes)
    if encoding == "dense":
        document["mask"] = {"encoding": "dense", "data": segmentation.label_map}
    elif encoding == "png":
        document["mask"] = {"encoding": "png", "data": base64.b64encode(png).decode("ascii")}
    return json_bytes(document)


def _json_size(encoding: str, document: dict[str, object], segmentation: Segmentation, png_bytes: int) -> int:
    """Bytes of the JSON answer in that encoding; `document` is the answer without its mask."""
    if encoding == "none":
        return len(json_bytes(document))
    empty = len(json_bytes({**document, "mask": {"encoding": encoding, "data": None}})) - len("null")
    if encoding == "png":
        return empty + len('""') + 4 * -(-png_bytes // 3)
    pixels_by_class = {summary.class_id: summary.pixels for summary in segmentation.classes}
    return empty + dense_json_bytes(pixels_by_class, segmentation.label_map.shape[0])


def _document(segmentation: Segmentation, record: ModelRecord) -> dict[str, object]:
    height_px, width_px = segmentation.label_map.shape
    return {
        "model": {"name": record.name, "version": record.version},
        "width": width_px,
        "height": height_px,
        "classes": [_class_entry(summary, record) for summary in segmentation.classes],
    }


def _class_entry(summary: ClassSummary, record: ModelRecord) -> dict[str, object]:
    info = record.classes[summary.class_id]
    return {
        "id": summary.class_id,
        "label": info.label,
        "color": info.color,
        "pixels": summary.pixels,
        "fraction": round(summary.fraction, 6),
        "box": summary.box_xyxy,
        "confidence": round(summary.confidence, 4),
    }


def _too_large(
    what: str, size_bytes: int, segmentation: Segmentation, record: ModelRecord, max_bytes: int
) -> AnswerTooLargeError:
    document = _document(segmentation, record)
    png_bytes = len(encode_png(segmentation.label_map, record.palette))
    sizes = {
        **{f"mask={name}": _json_size(name, document, segmentation, png_bytes) for name in ("dense", "png", "none")},
        f"Accept: {MediaType.NPY}": len(encode_npy(segmentation.label_map)),
        f"Accept: {MediaType.PNG}": png_bytes,
    }
    fitting = [f"{name} ({size} bytes)" for name, size in sizes.items() if size <= max_bytes]
    return AnswerTooLargeError(
        f"the answer as {what} would take {size_bytes} bytes, the limit is {max_bytes}; "
        f"these fit: {', '.join(fitting) or 'none, send a smaller image'}"
    )
