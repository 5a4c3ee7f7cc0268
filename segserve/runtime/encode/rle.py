"""Encodes a label map as COCO's compressed run lengths, which `pycocotools.mask.decode` reads."""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .mask import LabelMap


class Rle(TypedDict):
    """`size` is [height, width] in pixels. `counts` are run lengths down the columns, compressed to
    ASCII.
    """

    size: list[int]
    counts: str


def encode_rle(label_map: LabelMap, class_ids: Iterable[int]) -> dict[int, Rle]:
    """The mask of each class, by class id.

    The image is read once for all classes: the runs of any one class are found, then assigned to
        their classes.

    Args:
        label_map: uint8 (H, W).
        class_ids: the classes to encode; a class that the image does not contain gets an empty
            mask.
    """
    height_px, width_px = label_map.shape
    x, y = _run_starts(label_map)
    edges = np.append(x * height_px + y, label_map.size)
    class_of_run = label_map[y, x]
    masks = {}
    for class_id in class_ids:
        ours = np.flatnonzero(class_of_run == class_id)
        counts = _counts(edges[ours], edges[ours + 1], label_map.size)
        rle = coco_mask.frPyObjects(
            {"size": [height_px, width_px], "counts": counts}, height_px, width_px
        )
        masks[class_id] = Rle(size=[height_px, width_px], counts=rle["counts"].decode("ascii"))
    return masks


def _run_starts(label_map: LabelMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The x and y of the pixels at which runs down the columns start.

    They are found along the rows, which is the memory order, and then sorted into the order of the
    columns.
    """
    tops = np.flatnonzero(label_map[0, 1:] != label_map[-1, :-1]) + 1
    y, x = np.divmod(np.flatnonzero(label_map[1:] != label_map[:-1]), label_map.shape[1])
    x, y = (
        np.concatenate([[0], tops, x]),
        np.concatenate([np.zeros(len(tops) + 1, np.int64), y + 1]),
    )
    by_column = np.argsort(
        x.astype(np.min_scalar_type(x.max())), kind="stable"
    )  # 16 bits use radix sort
    return x[by_column], y[by_column]


def _counts(starts: NDArray[np.int64], ends: NDArray[np.int64], pixels: int) -> list[int]:
    """The lengths of alternating runs of 0 and 1. As in COCO, the first run is of 0, even if it has
    no pixels.
    """
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[:-1:2], edges[1::2], edges[-1] = starts, ends, pixels
    counts: list[int] = np.diff(edges, prepend=0).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]
