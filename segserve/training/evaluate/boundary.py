"""Boundary IoU: how well the outlines fit, which IoU hardly sees on large objects.

Cheng, Girshick, Dollar, Berg, Kirillov: "Boundary IoU: Improving Object-Centric Image Segmentation
    Evaluation",
CVPR 2021, arXiv:2103.16562, equation 1 and section 5, with the authors' dilation ratio of 0.02. The
boundary region
of a class is what erosion takes from its mask: its pixels from which another class or the image's
    edge is within reach.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...runtime.encode.mask import LabelMap
from ..data import IGNORED

DILATION_RATIO = 0.02
_OUTSIDE = 255  # no class has this id


def reach_px(height_px: int, width_px: int) -> int:
    """How wide the boundary region is in an image of that size: a fiftieth of the diagonal, at
    least one pixel.
    """
    return max(1, round(DILATION_RATIO * math.hypot(height_px, width_px)))


def near_contour(label_map: LabelMap, reach: int) -> NDArray[np.bool_]:
    """Which pixels have another class, or no pixel at all, within `reach` pixels across, down or
    diagonally.

    A mask eroded `reach` times by a 3 x 3 square keeps the pixels around which a square of `2 *
    reach + 1` holds
    nothing but the mask. For every class at once: where minimum and maximum of the square are the
        pixel's own class.
    """
    size = 2 * reach + 1
    highest = ndimage.maximum_filter(label_map, size, mode="constant", cval=_OUTSIDE)
    lowest = ndimage.minimum_filter(label_map, size, mode="constant", cval=_OUTSIDE)
    near: NDArray[np.bool_] = (highest != label_map) | (lowest != label_map)
    return near


def count_boundaries(truth: LabelMap, predicted: LabelMap, num_classes: int) -> NDArray[np.int64]:
    """Pixels of the boundary regions of one image, by class.

    The paper knows no ignored pixels. Here they are taken to be what was predicted there, so that
    they make no contour that the prediction does not have as well, and then left out of the count:
    a right prediction is 1, whatever it says about them.

    Args:
        truth: uint8 (H, W): class ids, 255 where pixels are ignored.
        predicted: uint8 (H, W): class ids.

    Returns:
        int64 (2, num_classes): pixels of the intersections and of the unions.
    """
    counted = truth != IGNORED
    known = np.where(counted, truth, predicted)
    reach = reach_px(*truth.shape)
    near_truth = near_contour(known, reach) & counted
    near_predicted = near_contour(predicted, reach) & counted
    agreed = _by_class(known[near_truth & near_predicted & (known == predicted)], num_classes)
    either = (
        _by_class(known[near_truth], num_classes)
        + _by_class(predicted[near_predicted], num_classes)
        - agreed
    )
    return np.stack([agreed, either])


def _by_class(class_ids: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(class_ids, minlength=num_classes)
