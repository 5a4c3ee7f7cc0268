"""What the page shows: results, samples of the server's encodings, and errors in plain words."""

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from ..bulk.results import as_coco
from ..bulk.sources import Source
from ..client import (
    AuthenticationError,
    MalformedResponseError,
    ResponseError,
    Segmentation,
    SegmentationClient,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)
from ..client.request import SegmentOptions
from ..runtime.encode.mask import LabelMap, encode_grey_png, encode_jpeg, encode_png
from ..runtime.encode.overlay import widest_place
from ..runtime.record import BACKGROUND
from ..schema.request import MediaType

_EXCERPT_BYTES = 600


# The media type to accept and the mask encoding, by the name to choose from.
ENCODINGS: dict[str, tuple[str, str | None]] = {
    "JSON, mask as PNG": (MediaType.JSON, "png"),
    "JSON, mask as run lengths (COCO RLE)": (MediaType.JSON, "rle"),
    "JSON, mask as polygons": (MediaType.JSON, "polygons"),
    "JSON, mask as rows of class ids": (MediaType.JSON, "dense"),
    "JSON, classes without a mask": (MediaType.JSON, "none"),
    "PNG, the label map": (MediaType.PNG, None),
    "JPEG, the overlay": (MediaType.JPEG, None),
    "NumPy file, the label map": (MediaType.NPY, None),
}


class Sample(TypedDict):
    """One response in one encoding. `excerpt` is the start of a text response."""

    encoding: str
    bytes: int
    ms: float
    excerpt: str


def take_sample(
    client: SegmentationClient, image_file: bytes, encoding: str, **options: Unpack[SegmentOptions]
) -> Sample:
    """Requests the image again, in the given encoding."""
    accept, mask = ENCODINGS[encoding]
    began = time.perf_counter()
    body = client.segment_raw(image_file, accept, mask=mask, **options)
    ms = 1000 * (time.perf_counter() - began)
    excerpt = ""
    if accept == MediaType.JSON:
        excerpt = body[:_EXCERPT_BYTES].decode("utf-8", errors="ignore")
        excerpt += " …" if len(body) > _EXCERPT_BYTES else ""
    return {"encoding": encoding, "bytes": len(body), "ms": ms, "excerpt": excerpt}


_STAGES = {
    "decode": "reading the picture",
    "preprocess": "scaling it",
    "inference": "the network",
    "encode": "writing the response",
}


class Step(TypedDict):
    """One stage of a response's time."""

    name: str
    ms: float


class PageResponse(TypedDict):
    """The viewer's document for a segmentation.

    Attributes:
        picture: data URL of the image, JPEG: upright, with the label map's size.
        ids: data URL of a grey PNG: pixel value = class id. A browser decodes a PNG only to
            colours, and two classes may have the same colour.
        labels: data URL of the label map as indexed PNG, for download.
        coco: a COCO data set of this image, for download.
        classes: rows of the response's table, each with `at`: the pixel (x, y) for its name; None
            for the background, whose name is not written.
        steps: the time of each stage; the last entry is the total, measured by the page.
        known: the classes that the model knows, if it found none of them; else empty.
        sample: a response in the requested encoding, or None.
    """

    stem: str
    width: int
    height: int
    model: str
    picture: str
    ids: str
    labels: str
    coco: dict[str, object]
    classes: list[dict[str, object]]
    steps: list[Step]
    known: list[str]
    sample: Sample | None


def as_response(
    segmentation: Segmentation,
    name: str,
    *,
    seconds: float,
    known: Sequence[str] = (),
    sample: Sample | None = None,
) -> PageResponse:
    """The viewer's document for the image file `name`, whose response took `seconds`. Raises
    SegserveError if the file cannot be decoded on this machine.
    """
    height_px, width_px = segmentation.label_map.shape
    return {
        "stem": Path(name).stem,
        "width": width_px,
        "height": height_px,
        "model": f"{segmentation.model} {segmentation.model_version}",
        "picture": data_url(encode_jpeg(segmentation.image), "image/jpeg"),
        "ids": data_url(encode_grey_png(segmentation.label_map), "image/png"),
        "labels": data_url(encode_png(segmentation.label_map, segmentation.palette), "image/png"),
        "coco": as_coco(segmentation, Source(name, name)),
        "classes": [
            row.as_document() | {"at": _name_place(segmentation.label_map, row.id)}
            for row in segmentation.classes
        ],
        "steps": steps(segmentation.timings_ms, 1000 * seconds),
        "known": list(known),
        "sample": sample,
    }


def _name_place(label_map: LabelMap, class_id: int) -> tuple[int, int] | None:
    return None if class_id == BACKGROUND else widest_place(label_map == class_id)


def steps(timings_ms: Mapping[str, float], total_ms: float) -> list[Step]:
    """The stages of `Server-Timing` in plain words, the time outside them, and the total."""
    reported = [Step(name=_STAGES.get(stage, stage), ms=ms) for stage, ms in timings_ms.items()]
    elsewhere_ms = max(0.0, total_ms - sum(timings_ms.values()))
    rest = [Step(name="on the way and waiting", ms=elsewhere_ms)] if reported else []
    return [*reported, *rest, Step(name="in all", ms=total_ms)]


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


class Problem(TypedDict):
    """The viewer's document for an error."""

    title: str
    detail: str


# Title and detail.
_BY_KIND = {
    UnreachableError: ("No server responds", "Start one with `segserve serve`, then try again."),
    TimedOutError: ("The server took too long", "Try a smaller picture, or fewer passes."),
    AuthenticationError: (
        "The server rejects the token",
        "Start the page again with --token or $SEGSERVE_TOKEN.",
    ),
    UnknownModelError: ("The server has no such model", "Choose another one under Options."),
    MalformedResponseError: (
        "This is not a segmentation server",
        "Look at the address that the page was given.",
    ),
    FileNotFoundError: (
        "The picture is no longer here",
        "Drop it again: pictures are kept for an hour.",
    ),
}
# By the error code of the server, whose message says what to do.
_BY_CODE = {
    "image_truncated": "The file ends too early",
    "image_corrupt": "The file is damaged",
    "image_unsupported": "This file is no picture that can be read",
    "image_too_large": "The picture is too large",
    "request_too_large": "The file is too large",
    "answer_too_large": "The response would be too large",
    "cost_too_high": "This would take too long",
    "bad_option": "The server does not know this option",
    "out_of_memory": "The server has no memory left",
    "ServiceUnavailableException": "The server is busy",
}
# For the browser's script: by the image's source and the browser's error name; "" for others.
IN_BROWSER: dict[str, dict[str, Problem]] = {
    "camera": {
        "NotAllowedError": {
            "title": "The browser may not use the camera",
            "detail": "Allow it for this page in the browser's address bar, or upload a picture.",
        },
        "NotFoundError": {
            "title": "No camera was found",
            "detail": "Connect one, or upload a picture.",
        },
        "": {
            "title": "The camera cannot be used",
            "detail": "Close other programs that may be using it, or upload a picture.",
        },
    },
    "clipboard": {
        "NotAllowedError": {
            "title": "The browser may not read the clipboard",
            "detail": "Press Ctrl+V (Command+V on a Mac), which needs no permission, "
            "or upload a picture.",
        },
        "": {
            "title": "There is no picture on the clipboard",
            "detail": "Copy a picture, not its file's name or address, or upload it.",
        },
    },
    "drop": {"": {"title": "This file is no picture", "detail": "Choose another file."}},
}
_OTHERWISE = "This did not work"


def in_plain_words(error: Exception) -> Problem:
    """Converts an error to a problem with the page's advice or else the server's message."""
    for kind, (title, detail) in _BY_KIND.items():
        if isinstance(error, kind):
            return {"title": title, "detail": detail}
    title, message = _OTHERWISE, str(error)
    if isinstance(error, ResponseError):
        title, message = _BY_CODE.get(error.code, _OTHERWISE), error.message
    elif isinstance(error, OSError):  # its message names a file of this machine
        message = ""
    detail = f"{message[:1].upper()}{message[1:].rstrip('.')}." if message else ""
    return {"title": title, "detail": detail}
