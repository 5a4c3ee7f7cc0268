"""Samples of the server's response encodings, for people who plan to write a program."""

import time
from typing import NamedTuple, TypedDict, Unpack

from ..client import SegmentationClient
from ..client.request import SegmentOptions
from ..schema.request import MediaType

_EXCERPT_BYTES = 600


class _Encoding(NamedTuple):
    accept: str
    mask: str | None


ENCODINGS = {
    "JSON, mask as PNG": _Encoding(MediaType.JSON, "png"),
    "JSON, mask as run lengths (COCO RLE)": _Encoding(MediaType.JSON, "rle"),
    "JSON, mask as polygons": _Encoding(MediaType.JSON, "polygons"),
    "JSON, mask as rows of class ids": _Encoding(MediaType.JSON, "dense"),
    "JSON, classes without a mask": _Encoding(MediaType.JSON, "none"),
    "PNG, the label map": _Encoding(MediaType.PNG, None),
    "JPEG, the overlay": _Encoding(MediaType.JPEG, None),
    "NumPy file, the label map": _Encoding(MediaType.NPY, None),
}


class Sample(TypedDict):
    """One response in one encoding. `excerpt` is the start of a text response; empty for a binary
    response.
    """

    encoding: str
    bytes: int
    ms: float
    excerpt: str


def take_sample(
    client: SegmentationClient, image_file: bytes, encoding: str, **options: Unpack[SegmentOptions]
) -> Sample:
    """Requests the image again, in the given encoding. Raises as
    `SegmentationClient.segment_raw`.
    """
    accept, mask = ENCODINGS[encoding]
    began = time.perf_counter()
    body = client.segment_raw(image_file, accept, mask=mask, **options)
    ms = 1000 * (time.perf_counter() - began)
    return {"encoding": encoding, "bytes": len(body), "ms": ms, "excerpt": _excerpt(body, accept)}


def _excerpt(body: bytes, accept: str) -> str:
    if accept != MediaType.JSON:
        return ""
    text = body[:_EXCERPT_BYTES].decode("utf-8", errors="ignore")
    return f"{text} …" if len(body) > _EXCERPT_BYTES else text
