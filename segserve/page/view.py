"""A segmentation as the page's viewer draws it: a document of JSON, made by pure functions."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from ..client import Segmentation
from ..runtime.mask import encode_grey_png, encode_jpeg, encode_png
from ..segment.coco import as_coco
from ..segment.formats import class_table
from ..segment.sources import Source
from .encodings import Sample

_STAGES = {
    "decode": "reading the picture",
    "preprocess": "scaling it",
    "inference": "the network",
    "encode": "writing the answer",
}


class Step(TypedDict):
    """A part of the time that an answer took."""

    name: str
    ms: float


class Answer(TypedDict):
    """What the viewer shows of a segmentation.

    Attributes:
        picture: a data URL, JPEG, upright and of the label map's size.
        ids: a data URL, grey PNG: the value of a pixel is its class id. A browser reads colours alone, and colours
            need not tell classes apart.
        labels: a data URL, the label map as indexed PNG, to keep.
        coco: a COCO data set of this one image, to keep.
        steps: where the time went; the last is the whole as seen from here.
        sample: what the server sends in the encoding that was asked about, or None.
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
    sample: Sample | None


def as_answer(segmentation: Segmentation, name: str, *, seconds: float, sample: Sample | None = None) -> Answer:
    """What the viewer shows of a segmentation.

    Args:
        name: of the picture's file.
        seconds: from the request to its answer.

    Raises:
        SegserveError: the picture's file cannot be decoded here.
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
        "coco": as_coco(segmentation, Source("", name)),
        "classes": class_table(segmentation.classes),
        "steps": steps(segmentation.timings_ms, 1000 * seconds),
        "sample": sample,
    }


def steps(timings_ms: Mapping[str, float], total_ms: float) -> list[Step]:
    """The stages of `Server-Timing` in plain words, what passed between them and here, and the whole."""
    told = [Step(name=_STAGES.get(stage, stage), ms=ms) for stage, ms in timings_ms.items()]
    elsewhere_ms = max(0.0, total_ms - sum(timings_ms.values()))
    rest = [Step(name="on the way and waiting", ms=elsewhere_ms)] if told else []
    return [*told, *rest, Step(name="in all", ms=total_ms)]


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
