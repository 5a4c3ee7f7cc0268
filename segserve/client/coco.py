"""Converts a segmentation to COCO annotations (https://cocodataset.org/#format-data)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.encode.mask import LabelMap
from ..runtime.encode.rle import Rle, encode_rle
from ..runtime.record import BACKGROUND
from .segmentation import ClassShare


def as_annotations(
    label_map: LabelMap,
    classes: Sequence[ClassShare],
    *,
    image_id: int | str,
    first_id: int,
    category_ids: Mapping[int, int] | None,
) -> list[dict[str, Any]]:
    """See `Segmentation.to_coco`."""
    shares = [
        share
        for share in classes
        if share.id != BACKGROUND and (category_ids is None or share.id in category_ids)
    ]
    masks = encode_rle(label_map, [share.id for share in shares])
    return [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": share.id if category_ids is None else category_ids[share.id],
            **_described(share, masks[share.id]),
        }
        for annotation_id, share in enumerate(shares, start=first_id)
    ]


def _described(share: ClassShare, mask: Rle) -> dict[str, Any]:
    x_min, y_min, x_max, y_max = share.box_xyxy
    return {
        "segmentation": mask,
        "area": share.pixels,
        "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
        "iscrowd": 0,
        "score": share.confidence,
    }
