"""Encodes segmentations as files, and joins the COCO files of single images to one data set."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..client import Segmentation
from ..runtime.encode.mask import LabelMap, encode_npy, encode_png, encode_rle
from ..runtime.files import whole_file
from .errors import printable
from .sources import Source
from .target import COCO_SUFFIX, DATA_SET_FILE, Format

_INFO = {"description": "made by `segserve segment --format coco`"}


def encode_label_map(label_map: LabelMap, palette: bytes, file_format: str) -> bytes:
    """Encodes uint8 (H, W) class ids as an indexed PNG (`png`) or as a NumPy file (`npy`)."""
    return encode_png(label_map, palette) if file_format == "png" else encode_npy(label_map)


def encode_result(segmentation: Segmentation, source: Source, file_format: Format) -> bytes:
    """Encodes the label map in the given format. `json` and `coco` also contain the classes."""
    if file_format is Format.JSON:
        return orjson.dumps(_as_response(segmentation))
    if file_format is Format.COCO:
        return orjson.dumps(as_coco(segmentation, source))
    return encode_label_map(segmentation.label_map, segmentation.palette, file_format)


def as_coco(segmentation: Segmentation, source: Source) -> dict[str, object]:
    """A COCO data set of one image. `write_data_set` joins these."""
    height_px, width_px = segmentation.label_map.shape
    annotations = segmentation.to_coco(image_id=1)
    present = {annotation["category_id"] for annotation in annotations}
    return {
        "info": _INFO,
        "images": [
            {"id": 1, "file_name": printable(source.name), "width": width_px, "height": height_px}
        ],
        "annotations": annotations,
        "categories": [
            {"id": row.id, "name": row.label} for row in segmentation.classes if row.id in present
        ],
    }


def _as_response(segmentation: Segmentation) -> dict[str, object]:
    """The server's JSON response to `mask=rle`."""
    height_px, width_px = segmentation.label_map.shape
    masks = encode_rle(segmentation.label_map, [row.id for row in segmentation.classes])
    return {
        "model": {"name": segmentation.model, "version": segmentation.model_version},
        "width": width_px,
        "height": height_px,
        "classes": [row.as_document() for row in segmentation.classes],
        "mask": {"encoding": "rle", "data": {str(number): mask for number, mask in masks.items()}},
    }


def write_data_set(folder: Path) -> Path:
    """Joins all COCO files that `as_coco` created in the folder to `segmentation.coco.json` there,
    without keeping all of them in memory. In the order of their paths, images and annotations are
    numbered from 1.
    """
    target = folder / DATA_SET_FILE
    with whole_file(target) as file:
        file.write(b'{"info": ' + orjson.dumps(_INFO) + b',\n"images": [\n')
        numbered = enumerate(_documents(folder), start=1)
        images = ({**document["images"][0], "id": number} for number, document in numbered)
        _write_joined(file, images)
        file.write(b'],\n"annotations": [\n')
        _write_joined(file, _annotations(folder))
        categories = {row["id"]: row for one in _documents(folder) for row in one["categories"]}
        listed = [category for _, category in sorted(categories.items())]
        file.write(b'],\n"categories": ' + orjson.dumps(listed) + b"}\n")
    return target


def _write_joined(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    separator = b""
    for row in rows:
        file.write(separator + orjson.dumps(row))
        separator = b",\n"


def _annotations(folder: Path) -> Iterator[dict[str, Any]]:
    annotation_ids = count(1)
    for image_id, document in enumerate(_documents(folder), start=1):
        for annotation in document["annotations"]:
            yield {**annotation, "id": next(annotation_ids), "image_id": image_id}


def _documents(folder: Path) -> Iterator[dict[str, Any]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(COCO_SUFFIX)):
            path = Path(parent, name)
            document = {} if path == folder / DATA_SET_FILE else _read(path)
            if document.get("info") == _INFO:
                yield document


def _read(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
