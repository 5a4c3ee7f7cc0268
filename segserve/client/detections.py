"""Conversions to and from the detections of the optional package supervision."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..runtime.decode.image import decoded_size
from ..runtime.encode.mask import LabelMap
from ..runtime.record import BACKGROUND, voc_color
from .images import ImageInput, as_image_file
from .share import ClassShare

if TYPE_CHECKING:
    import supervision

_COLORS = 256
_ANY_NUMBER = 2**31  # pixels; no real limit, because the image is the caller's own


class Painted(TypedDict):
    """The fields of a `Segmentation` that follow from detections and their image."""

    label_map: LabelMap
    classes: tuple[ClassShare, ...]
    palette: bytes
    image_file: bytes


def as_detections(label_map: LabelMap, classes: Sequence[ClassShare]) -> "supervision.Detections":
    """See `Segmentation.to_detections`."""
    try:
        from supervision import Detections
    except ImportError as error:
        raise ImportError(
            "supervision is not installed; install it with: pip install supervision"
        ) from error
    shares = [share for share in classes if share.id != BACKGROUND]
    class_ids = np.array([share.id for share in shares], np.int64)
    return Detections(
        xyxy=np.array([share.box_xyxy for share in shares], np.float32).reshape(-1, 4),
        mask=label_map == class_ids[:, None, None],
        class_id=class_ids,
        confidence=np.array([share.confidence for share in shares], np.float32),
        data={"class_name": np.array([share.label for share in shares], np.str_)},
    )


def from_detections(detections: "supervision.Detections", image: ImageInput) -> Painted:
    """See `Segmentation.from_detections`."""
    image_file = as_image_file(image)
    size_hw = decoded_size(image_file, max_pixels=_ANY_NUMBER)
    class_ids = _class_ids(detections)
    confidences = (
        np.ones(len(class_ids)) if detections.confidence is None else detections.confidence
    )
    label_map, confidence = np.zeros(size_hw, np.uint8), np.ones(size_hw, np.float32)
    for index, class_id in enumerate(class_ids):
        mask = _mask(detections, index, size_hw)
        label_map[mask], confidence[mask] = class_id, confidences[index]
    label_map.flags.writeable = False
    labels = {BACKGROUND: "background", **_labels(detections, class_ids)}
    shares = [
        _share(class_id, labels[class_id], label_map, confidence)
        for class_id in np.unique(label_map).tolist()
    ]
    return Painted(
        label_map=label_map,
        classes=tuple(sorted(shares, key=lambda share: -share.pixels)),
        palette=bytes(value for class_id in range(_COLORS) for value in voc_color(class_id)),
        image_file=image_file,
    )


def _class_ids(detections: "supervision.Detections") -> list[int]:
    class_ids: Any = detections.class_id
    if len(detections) and (detections.mask is None or class_ids is None):
        raise ValueError("expected detections with masks and class ids, got some without")
    beyond = [
        class_id
        for class_id in (() if class_ids is None else class_ids.tolist())
        if not 0 < class_id < _COLORS
    ]
    if beyond:
        raise ValueError(
            f"class ids must be from 1 to {_COLORS - 1}, 0 being background, got {beyond[:8]}"
        )
    return [] if class_ids is None else [int(class_id) for class_id in class_ids]


def _labels(detections: "supervision.Detections", class_ids: list[int]) -> dict[int, str]:
    names: Any = detections.data.get("class_name")
    return {
        class_id: f"class {class_id}" if names is None else str(names[index])
        for index, class_id in enumerate(class_ids)
    }


def _mask(
    detections: "supervision.Detections", index: int, size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    masks: Any = detections.mask
    mask = np.asarray(masks[index], dtype=bool)
    if mask.shape != size_hw:
        raise ValueError(f"expected masks of the image's size, {size_hw} (H, W), got {mask.shape}")
    return mask


def _share(
    class_id: int, label: str, label_map: NDArray[np.uint8], confidence: NDArray[np.float32]
) -> ClassShare:
    mask = label_map == class_id
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box_xyxy = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    pixels = int(mask.sum())
    return ClassShare(
        class_id,
        label,
        voc_color(class_id),
        pixels,
        pixels / mask.size,
        box_xyxy,
        float(confidence[mask].mean()),
    )
