"""Converts a segmentation to COCO annotations (https://cocodataset.org/#format-data)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.encode.mask import LabelMap, Rle, encode_rle
from ..runtime.record import BACKGROUND
from ..schema.response import ClassRow


def as_annotations(
    label_map: LabelMap,
    classes: Sequence[ClassRow],
    *,
    image_id: int | str,
    first_id: int,
    category_ids: Mapping[int, int] | None,
) -> list[dict[str, Any]]:
    """See `Segmentation.to_coco`."""
    rows = [
        row
        for row in classes
        if row.id != BACKGROUND and (category_ids is None or row.id in category_ids)
    ]
    masks = encode_rle(label_map, [row.id for row in rows])
    return [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": row.id if category_ids is None else category_ids[row.id],
            **_described(row, masks[row.id]),
        }
        for annotation_id, row in enumerate(rows, start=first_id)
    ]


def _described(row: ClassRow, mask: Rle) -> dict[str, Any]:
    x_min, y_min, x_max, y_max = row.box_xyxy
    return {
        "segmentation": mask,
        "area": row.pixels,
        "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
        "iscrowd": 0,
        "score": row.confidence,
    }
