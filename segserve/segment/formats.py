"""Encodes a segmentation as the content of a file."""

import orjson

from ..client import ClassRow, Segmentation
from ..runtime.encode.mask import encode_jpeg, encode_npy, encode_png
from .coco import as_coco
from .layout import Format
from .sources import Source


def encode_result(segmentation: Segmentation, source: Source, file_format: Format) -> bytes:
    """Encodes the label map in the given format. `json` and `coco` also contain the classes."""
    if file_format is Format.PNG:
        return encode_png(segmentation.label_map, segmentation.palette)
    if file_format is Format.NPY:
        return encode_npy(segmentation.label_map)
    document = (
        as_coco(segmentation, source) if file_format is Format.COCO else as_answer(segmentation)
    )
    return orjson.dumps(document)


def encode_overlay(segmentation: Segmentation) -> bytes:
    """Encodes the image with its classes in colour and a legend, as JPEG."""
    return encode_jpeg(segmentation.overlay())


def as_answer(segmentation: Segmentation) -> dict[str, object]:
    """The server's JSON response to `mask=rle`."""
    from ..runtime.encode.rle import encode_rle

    height_px, width_px = segmentation.label_map.shape
    masks = encode_rle(segmentation.label_map, [share.id for share in segmentation.classes])
    return {
        "model": {"name": segmentation.model, "version": segmentation.model_version},
        "width": width_px,
        "height": height_px,
        "classes": class_table(segmentation.classes),
        "mask": {
            "encoding": "rle",
            "data": {str(class_id): mask for class_id, mask in masks.items()},
        },
    }


def class_table(classes: tuple[ClassRow, ...]) -> list[dict[str, object]]:
    """The classes in the format of the server's JSON response."""
    return [row.as_document() for row in classes]
