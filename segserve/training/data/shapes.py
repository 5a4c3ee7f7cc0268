"""The shapes of other tools' annotations, and the COCO document that is made from them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .files import DataError

_WITHOUT_AREA = {
    *("points", "polyline", "skeleton"),  # CVAT
    *("keypoint", "keypointlabels"),  # Label Studio
    *("point", "line", "linestrip"),  # labelme
}
_OUTLINE_POINTS = 64  # of an ellipse


class Shape(NamedTuple):
    """An object of an image.

    Attributes:
        kind: the tool's name for the type of shape.
        label: empty if the shape has none.
        segmentation: as in COCO; None if the shape is not drawn.
    """

    kind: str
    label: str
    segmentation: object


class AnnotatedImage(NamedTuple):
    """An image of an annotation file. Width and height are in pixels."""

    file_name: str
    width: int
    height: int
    shapes: Sequence[Shape]


class Converted(NamedTuple):
    """A COCO document of instances, as JSON, and notes on what it leaves out."""

    content: bytes
    notes: Sequence[str] = ()


def as_coco(source: Path, images: Iterable[AnnotatedImage], *, skip_broken: bool) -> Converted:
    """Converts annotated images to a COCO document. Later shapes of an image lie over earlier ones
    only where they are smaller, as everywhere in COCO.

    Args:
        source: names the annotations in messages.
        skip_broken: leave out and count shapes with an area that cannot be drawn.

    Raises:
        DataError: there are such shapes, without `skip_broken`.
    """
    listed = list(images)
    left_out = [
        (image.file_name, shape)
        for image in listed
        for shape in image.shapes
        if shape.segmentation is None
    ]
    broken = {
        f"{source}: {name}: shapes of type {shape.kind} cannot be drawn; use polygons or masks"
        for name, shape in left_out
        if shape.label and shape.kind not in _WITHOUT_AREA
    }
    if broken and not skip_broken:
        raise DataError(*sorted(broken))
    kinds = Counter(
        shape.kind if shape.label else f"{shape.kind} without a label" for _, shape in left_out
    )
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    note = f"{source}: shapes left out, which are not drawn: {counted}"
    return Converted(_coco_document(listed), [note] if kinds else [])


def _coco_document(images: Sequence[AnnotatedImage]) -> bytes:
    drawn = [[s for s in image.shapes if s.segmentation is not None] for image in images]
    labels = sorted({shape.label for shapes in drawn for shape in shapes})
    ids = {label: number for number, label in enumerate(labels, start=1)}
    document = {
        "images": [
            {"id": key, "file_name": image.file_name, "width": image.width, "height": image.height}
            for key, image in enumerate(images)
        ],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
        "annotations": [
            {
                "id": f"{images[key].file_name} {index}",
                "image_id": key,
                "category_id": ids[shape.label],
                "segmentation": shape.segmentation,
            }
            for key, shapes in enumerate(drawn)
            for index, shape in enumerate(shapes, start=1)
        ],
    }
    return json.dumps(document).encode()


def run_lengths(
    inside: NDArray[np.bool_], size_hw: tuple[int, int], left: int = 0, top: int = 0
) -> dict[str, object]:
    """COCO's run lengths of an image, from a mask within a box of it, bool (h, w). Raises
    ValueError if the box begins outside the image.
    """
    if left < 0 or top < 0:
        raise ValueError("a mask leads out of the image")
    mask = np.zeros(size_hw, np.uint8, order="F")
    height, width = inside.shape
    part = mask[top : top + height, left:][:, :width]
    part |= inside[: part.shape[0], : part.shape[1]]
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    """float64 (4, 2): x and y of the corners."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def ellipse(center_xy: Sequence[float], radius_x: float, radius_y: float) -> NDArray[np.float64]:
    """float64 (64, 2): x and y of points on the outline."""
    angles = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(unit * (radius_x, radius_y) + center_xy)


def polygon(
    xy: NDArray[np.float64], degrees: float = 0, pivot_xy: Sequence[float] = (0, 0)
) -> list[list[float]]:
    """COCO's polygon with these points, float64 (points, 2), turned clockwise about a pivot."""
    if degrees:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        xy = (xy - pivot_xy) @ np.array([[cos, sin], [-sin, cos]]) + pivot_xy
    return [xy.ravel().tolist()]
