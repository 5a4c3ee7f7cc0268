"""Joins the COCO files of single images to one data set, without keeping all of it in memory."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..client import Segmentation
from ..runtime.files import whole_file
from .layout import COCO_SUFFIX, DATA_SET_FILE
from .sources import Source, printable

_INFO = {"description": "made by `segserve segment --format coco`"}


def as_coco(segmentation: Segmentation, source: Source) -> dict[str, object]:
    """A COCO data set of one image. `write_data_set` joins these."""
    height_px, width_px = segmentation.label_map.shape
    annotations = segmentation.to_coco(image_id=1)
    shown = {annotation["category_id"] for annotation in annotations}
    return {
        "info": _INFO,
        "images": [
            {"id": 1, "file_name": printable(source.name), "width": width_px, "height": height_px}
        ],
        "annotations": annotations,
        "categories": [
            {"id": share.id, "name": share.label}
            for share in segmentation.classes
            if share.id in shown
        ],
    }


def write_data_set(folder: Path) -> Path:
    """Joins all COCO files of single images in the folder to `segmentation.coco.json` in the same
    folder.

    The files are sorted by path. Images and annotations are numbered from 1 in this order. Files
    that `as_coco` did not create are skipped.

    Raises:
        OSError: a file cannot be read or written.
    """
    target = folder / DATA_SET_FILE
    with whole_file(target) as file:
        file.write(b'{"info": ' + orjson.dumps(_INFO) + b',\n"images": [\n')
        categories = _write_images(file, folder)
        file.write(b'],\n"annotations": [\n')
        _write_annotations(file, folder)
        listed = [{"id": class_id, "name": name} for class_id, name in sorted(categories.items())]
        file.write(b'],\n"categories": ' + orjson.dumps(listed) + b"}\n")
    return target


def _write_images(file: BinaryIO, folder: Path) -> dict[int, str]:
    """Returns the category names by id."""
    categories: dict[int, str] = {}
    separator = b""
    for image_id, document in enumerate(_documents(folder), start=1):
        categories |= {category["id"]: category["name"] for category in document["categories"]}
        file.write(separator + orjson.dumps({**document["images"][0], "id": image_id}))
        separator = b",\n"
    return categories


def _write_annotations(file: BinaryIO, folder: Path) -> None:
    separator, annotation_id = b"", 0
    for image_id, document in enumerate(_documents(folder), start=1):
        for annotation in document["annotations"]:
            annotation_id += 1
            file.write(
                separator + orjson.dumps({**annotation, "id": annotation_id, "image_id": image_id})
            )
            separator = b",\n"


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
