"""A running server as a predictor: every image's file goes over HTTP, as any client sends it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError

from ..client import RefusedError, SegmentationClient, decode_png_mask
from ..data import LabelledImages
from ..runtime.mask import LabelMap
from ..runtime.options import Options
from ..runtime.record import ModelRecord
from .measure import Predictor

_REQUESTS_AT_ONCE = 4  # the server computes one while it decodes, encodes and sends others


class _Class(BaseModel):
    id: int
    label: str


class _Mask(BaseModel):
    encoding: str
    data: str


class _Answer(BaseModel):
    """What is read of the server's JSON; it holds more."""

    classes: list[_Class]
    mask: _Mask


@contextmanager
def served_model(
    url: str,
    record: ModelRecord,
    data: LabelledImages,
    options: Options,
    *,
    name: str | None = None,
    token: str | None = None,
) -> Iterator[Predictor]:
    """The model `name` of a server, by default the record's own name. Options that were not set are not sent.

    The inference port tells no class that an image does not hold: the record gives names and colours, and every
    answer is checked against it.
    """
    with SegmentationClient(url, token=token, model=name or record.name) as client:
        asked = options.model_dump(include={"mode", "tta"}, exclude_unset=True)

        def label_map(image_name: str, image_rgb: NDArray[np.uint8]) -> LabelMap:
            content = data.paths(image_name)[0].read_bytes()
            try:
                return _label_map(client.segment(content, mask="png", **asked), image_rgb, record)
            except requests.ConnectionError as error:
                raise ConnectionError(f"{url}: no server answers there; start one, or see its log") from error
            except (RefusedError, requests.RequestException, ValueError) as error:
                raise ValueError(f"{image_name}: {error}") from error

        yield Predictor(record, label_map, _REQUESTS_AT_ONCE, options, server=url)


def _label_map(answer: dict[str, Any], image_rgb: NDArray[np.uint8], record: ModelRecord) -> LabelMap:
    """The answer's mask, uint8 (H, W), if the answer is one to this image by a model with the record's classes."""
    try:
        classes = _Answer.model_validate(answer).classes
    except ValidationError as error:
        raise ValueError(
            "the server's answer is no segmentation: is the address that of its inference port?"
        ) from error
    labels = dict(enumerate(record.labels))
    for entry in classes:
        if labels.get(entry.id) != entry.label:
            raise ValueError(
                f"the server calls class {entry.id} {entry.label!r:.80}, the record {labels.get(entry.id)!r}: "
                "measure with the record of the model that is served"
            )
    height_px, width_px = image_rgb.shape[:2]
    label_map = _decoded(decode_png_mask(answer), (width_px, height_px))
    if label_map.max() >= len(labels):
        raise ValueError(f"the server's mask has class {label_map.max()}, the record's are 0 to {len(labels) - 1}")
    return label_map


def _decoded(png: bytes, size_wh: tuple[int, int]) -> LabelMap:
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.size != size_wh or picture.mode not in ("P", "L"):
                expected, got = ("{} x {} pixels".format(*size) for size in (size_wh, picture.size))
                raise ValueError(f"expected a mask of {expected} and mode P, got {got} and {picture.mode}")
            return np.array(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: what Pillow calls a bad chunk
        raise ValueError(f"the server's mask cannot be decoded: {error}") from error
