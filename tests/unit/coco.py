"""Tiny data sets in COCO's JSON: two cats and a dog, drawn as squares."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIDE_PX = 40
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
CAT, DOG = 17, 18


def square(left: int, top: int, side_px: int) -> list[list[float]]:
    """A polygon, as `segmentation` holds it."""
    right, bottom = left + side_px, top + side_px
    return [[left, top, right, top, right, bottom, left, bottom]]


def square_mask(left: int, top: int, side_px: int) -> np.ndarray:
    mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    mask[top : top + side_px, left : left + side_px] = 1
    return mask


def rle(mask: np.ndarray, *, compressed: bool = True) -> dict:
    """The mask, uint8 (H, W), as `segmentation` holds it for crowds."""
    if compressed:
        encoded = coco_mask.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {
        "size": list(mask.shape),
        "counts": np.diff(edges, prepend=0, append=flat.size).tolist(),
    }


def annotation(
    segmentation: object, category_id: int = CAT, image_id: int = 1, **more: object
) -> dict:
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, **more}


def write_coco(
    folder: Path, annotations: list, *, count: int = 1, name: str = "instances_train", **keys
) -> Path:
    """The JSON, any key of which may be given, and grey images img1.jpg... in train/; the path of
    the JSON.
    """
    listed = [
        {"id": number, "file_name": f"img{number}.jpg", "width": SIDE_PX, "height": SIDE_PX}
        for number in range(1, count + 1)
    ]
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for entry in listed:
        Image.fromarray(np.full((SIDE_PX, SIDE_PX, 3), 128, np.uint8)).save(
            folder / "train" / entry["file_name"]
        )
    path = folder / "annotations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    document = {"images": listed, "categories": CATEGORIES, "annotations": annotations, **keys}
    path.write_text(json.dumps(document))
    return path


def write_segments(path: Path, segment_ids: np.ndarray) -> None:
    """Segment ids, int (H, W), as a panoptic PNG."""
    rgb = np.stack([segment_ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
