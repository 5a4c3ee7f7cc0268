"""Builds the JSON response for one image. Its size is known before the largest encoding is
built.
"""

import base64
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from ...schema.request import MaskEncoding
from ...schema.response import ClassRow
from ..inference.labels import Segmentation
from ..record import ModelRecord
from .mask import dense_json_bytes, encode_grey_png, encode_png
from .polygons import encode_polygons
from .rle import encode_rle


def json_bytes(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def class_rows(segmentation: Segmentation, record: ModelRecord) -> tuple[ClassRow, ...]:
    """The classes of an image, with the record's labels and colours."""
    named = ((area, record.classes[area.id]) for area in segmentation.classes)
    return tuple(ClassRow.of(area, info.label, info.color) for area, info in named)


class JsonResponse:
    """One segmentation, encoded for any `mask` and `confidence`.

    `rle` and `polygons` have one member for each entry of `classes`, including the background. So
    their members match the class table, and together they give the whole label map.
    """

    def __init__(self, segmentation: Segmentation, record: ModelRecord) -> None:
        self._segmentation = segmentation
        self._record = record
        self._texts: dict[str, bytes] = {}

    def size_bytes(self, mask: MaskEncoding, *, confidence: bool) -> int:
        """The size of `body` in bytes, computed without the rows of `dense`."""
        size = len(json_bytes(self._document(mask, confidence=confidence, texts={})))
        size += self._dense_bytes if mask == "dense" else len(self._mask_text(mask))
        return size + (len(self._confidence_text) if confidence else 0)

    def body(self, mask: MaskEncoding, *, confidence: bool) -> bytes:
        texts = {"mask": self._mask_text(mask)}
        if confidence:
            texts["confidence"] = self._confidence_text
        return json_bytes(self._document(mask, confidence=confidence, texts=texts))

    def _document(
        self, mask: MaskEncoding, *, confidence: bool, texts: dict[str, bytes]
    ) -> dict[str, Any]:
        """The document. Its members with pixels hold the JSON of `texts`, or are empty."""
        document = dict(self._head)
        for name, encoding, requested in (
            ("mask", mask, mask != "none"),
            ("confidence", "png", confidence),
        ):
            if requested:
                document[name] = {
                    "encoding": encoding,
                    "data": orjson.Fragment(texts.get(name, b"")),
                }
        return document

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

    @property
    def _dense_bytes(self) -> int:
        pixels_by_class = {area.id: area.pixels for area in self._segmentation.classes}
        return dense_json_bytes(pixels_by_class, self._segmentation.label_map.shape[0])

    @cached_property
    def _confidence_text(self) -> bytes:
        confidence_map = self._segmentation.confidence_map
        return b"" if confidence_map is None else _base64_text(encode_grey_png(confidence_map))


def _base64_text(content: bytes) -> bytes:
    return b'"' + base64.b64encode(content) + b'"'
