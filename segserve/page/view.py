"""Pure functions that convert a segmentation to the JSON document of the page's viewer."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from ..client import Segmentation
from ..runtime.encode.mask import encode_grey_png, encode_jpeg, encode_png
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
    """One stage of a response's time."""

    name: str
    ms: float


class Answer(TypedDict):
    """The viewer's document for a segmentation.

    Attributes:
        picture: data URL of the image, JPEG: upright, with the label map's size.
        ids: data URL of a grey PNG: pixel value = class id. A browser decodes a PNG only to
            colours, and two classes may have the same colour.
        labels: data URL of the label map as indexed PNG, for download.
        coco: a COCO data set of this image, for download.
        steps: the time of each stage; the last entry is the total, measured by the page.
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
    sample: Sample | None


def as_answer(
    segmentation: Segmentation, name: str, *, seconds: float, sample: Sample | None = None
) -> Answer:
    """Converts a segmentation to the viewer's document.

    Args:
        name: name of the image file.
        seconds: time from the request to its response.

    Raises:
        SegserveError: the image file cannot be decoded on this machine.
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
    """The stages of `Server-Timing` in plain words, the time outside the server's stages, and the
    total.
    """
    told = [Step(name=_STAGES.get(stage, stage), ms=ms) for stage, ms in timings_ms.items()]
    elsewhere_ms = max(0.0, total_ms - sum(timings_ms.values()))
    rest = [Step(name="on the way and waiting", ms=elsewhere_ms)] if told else []
    return [*told, *rest, Step(name="in all", ms=total_ms)]


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
