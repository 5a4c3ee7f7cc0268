"""Label maps -> pixel counts -> figures -> the report of an evaluation, a JSON document.

Pixel accuracy, mean accuracy, mean IoU and frequency-weighted IoU are those of Long, Shelhamer,
Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 5. Counts are
summed over the data set before the division, as in PASCAL VOC, so that an image weighs by its
pixels.

Boundary IoU is that of Cheng, Girshick, Dollar, Berg, Kirillov: "Boundary IoU: Improving
Object-Centric Image Segmentation Evaluation", CVPR 2021, arXiv:2103.16562, equation 1 and section
5, with the authors' dilation ratio of 0.02. The boundary region of a class is the part of its mask
that erosion removes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy import ndimage
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ..runtime.encode.mask import LabelMap
from ..runtime.files import write_whole
from ..runtime.record import Accuracy, Calibration, CoveredMean, Strict, Unit
from .data import IGNORED

DILATION_RATIO = 0.02
_OUTSIDE = 255  # no class has this id

Counts = NDArray[np.int64]
Figures = NDArray[np.float64]
"""float64 (classes,) in 0..1; NaN for a class without a figure."""


@dataclass(frozen=True)
class PixelCounts:
    """The pixel counts of one or several images.

    Attributes:
        confusion: (true class, predicted class), without ignored pixels.
        boundary: (2, classes): intersections and unions of the boundary regions.
        images_with: (classes,): the number of images that contain each class.
    """

    confusion: Counts
    boundary: Counts
    images_with: Counts

    @classmethod
    def none(cls, num_classes: int) -> "PixelCounts":
        shapes = (num_classes, num_classes), (2, num_classes), num_classes
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.images_with + other.images_with,
        )

    @property
    def true(self) -> Counts:
        """The labelled pixels of each class."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def iou(self) -> Figures:
        """Intersection over union of the classes that occur in the labels."""
        hits = self.confusion.diagonal()
        return divided(hits, self.true + self.confusion.sum(axis=0) - hits, where=self.true > 0)

    @property
    def accuracy(self) -> Figures:
        """The share of each class's labelled pixels that were predicted as it: the recall."""
        return divided(self.confusion.diagonal(), self.true, where=self.true > 0)

    @property
    def boundary_iou(self) -> Figures:
        """Boundary IoU of the classes that occur in the labels; NaN if the contour is ignored."""
        agreed, either = self.boundary
        return divided(agreed, either, where=(self.true > 0) & (either > 0))

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur in the labels."""
        return float(np.nanmean(self.iou))

    def covered_mean(self, min_images: int) -> CoveredMean | None:
        """Mean IoU over the classes in at least `min_images` images, which is 1 or more; None if
        there are no such classes.
        """
        iou = self.iou[self.images_with >= min_images]
        if not iou.size:
            return None
        return CoveredMean(min_images=min_images, classes=len(iou), mean_iou=float(np.mean(iou)))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean over the classes that occur in the labels, weighted by their labelled pixels."""
        return float(np.nansum(self.true * self.iou) / self.true.sum())

    @property
    def pixel_accuracy(self) -> float:
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def mean_accuracy(self) -> float:
        """Mean of the accuracies of the classes that occur in the labels."""
        return float(np.nanmean(self.accuracy))

    @property
    def mean_boundary_iou(self) -> float | None:
        """Mean over the classes that occur in the labels; None if every contour is ignored."""
        boundary_iou = self.boundary_iou
        return None if np.isnan(boundary_iou).all() else float(np.nanmean(boundary_iou))


def divided(part: Counts, whole: Counts, *, where: NDArray[np.bool_]) -> Figures:
    """The quotients, NaN elsewhere than `where`."""
    figures = np.full(part.shape, np.nan)
    np.divide(part, whole, out=figures, where=where)
    return figures


def count_pixels(truth: LabelMap, predicted: LabelMap, num_classes: int) -> PixelCounts:
    """Counts one image.

    Args:
        truth: uint8 (H, W): class ids, 255 for ignored pixels.
        predicted: uint8 (H, W): class ids below `num_classes`.

    Raises:
        ValueError: labels are neither 255 nor a class id. The message lists them.
    """
    found = np.unique(truth)
    unknown = found[(found >= num_classes) & (found != IGNORED)]
    if unknown.size:
        raise ValueError(
            f"labels {unknown.tolist()} are none of the model's {num_classes} classes: "
            f"expected 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore"
        )
    maps = torch.tensor(predicted), torch.tensor(truth)
    confusion = multiclass_confusion_matrix(
        *maps, num_classes, ignore_index=IGNORED, validate_args=False
    ).numpy()
    present = (confusion.sum(axis=1) > 0).astype(np.int64)
    return PixelCounts(confusion, count_boundaries(truth, predicted, num_classes), present)


def by_label(labels: Sequence[str], figures: Figures) -> dict[str, float]:
    """Class name -> figure, of the classes that have one."""
    named = zip(labels, figures.tolist(), strict=True)
    return {label: value for label, value in named if not math.isnan(value)}


def reach_px(height_px: int, width_px: int) -> int:
    """The width of the boundary region: 2 % of the image's diagonal, at least one pixel."""
    return max(1, round(DILATION_RATIO * math.hypot(height_px, width_px)))


def near_contour(label_map: LabelMap, reach: int) -> NDArray[np.bool_]:
    """The pixels with another class, or the image's edge, within `reach` pixels in any direction.

    These are the pixels that `reach` erosions by a 3 x 3 square remove from the mask of their
    class. For all classes at once: those whose square of side `2 * reach + 1` has a minimum or a
    maximum other than the pixel itself.
    """
    size = 2 * reach + 1
    highest = ndimage.maximum_filter(label_map, size, mode="constant", cval=_OUTSIDE)
    lowest = ndimage.minimum_filter(label_map, size, mode="constant", cval=_OUTSIDE)
    near: NDArray[np.bool_] = (highest != label_map) | (lowest != label_map)
    return near


def count_boundaries(truth: LabelMap, predicted: LabelMap, num_classes: int) -> NDArray[np.int64]:
    """Counts the pixels of the boundary regions of one image, by class.

    The paper has no ignored pixels. Here, ignored pixels take the predicted class, so that they add
    no contour of their own, and are not counted. A correct prediction has a boundary IoU of 1,
    whatever it predicts for ignored pixels.

    Shape: label maps as of `count_pixels` -> int64 (2, num_classes): pixels of the intersections
    and of the unions.
    """
    counted = truth != IGNORED
    known = np.where(counted, truth, predicted)
    reach = reach_px(*truth.shape)
    near_truth = near_contour(known, reach) & counted
    near_predicted = near_contour(predicted, reach) & counted
    agreeing = near_truth & near_predicted & (known == predicted)
    agreed = np.bincount(known[agreeing], minlength=num_classes)
    both = np.concatenate([known[near_truth], predicted[near_predicted]])
    return np.stack([agreed, np.bincount(both, minlength=num_classes) - agreed])


# The report

Scores = Annotated[
    dict[str, Unit], Field(description="mean IoU of every image over the classes of its labels")
]


class ClassFigures(Strict):
    """One class. A class that does not occur in the labels has no figures, but may be predicted."""

    id: NonNegativeInt
    label: str
    images: NonNegativeInt
    pixels: NonNegativeInt
    iou: Unit | None
    accuracy: Unit | None
    boundary_iou: Unit | None


class EvaluationReport(Strict):
    """The result of one run of `segserve evaluate`.

    Attributes:
        options: the options that were set; the model or the server decides about the others.
        server: the address of the measured server, if there was one.
        pixels: the number of labelled pixels.
        seconds: duration, from the first file to the last count.
        covered: the mean IoU over the classes that occur in enough images.
        calibration: a copy from the model's record (`segserve calibrate`), not a measurement.
        confusion: pixels, a row for every true class, a column for every predicted class.
    """

    format: Literal["segserve-evaluation"] = "segserve-evaluation"
    format_version: Literal[1] = 1
    model: str
    model_version: str
    output_stride: int
    options: dict[str, str]
    server: str | None
    data: str
    split: str
    images: PositiveInt
    pixels: PositiveInt
    seconds: NonNegativeFloat
    mean_iou: Unit
    covered: CoveredMean | None
    frequency_weighted_iou: Unit
    mean_boundary_iou: Unit | None
    pixel_accuracy: Unit
    mean_accuracy: Unit
    calibration: Calibration | None = None
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[NonNegativeInt, ...], ...]
    image_mean_iou: Scores

    @property
    def present(self) -> list[ClassFigures]:
        """The classes that occur in the labels."""
        return [figures for figures in self.classes if figures.images]

    @property
    def class_iou(self) -> dict[str, float]:
        """Class name -> IoU, for the classes that occur in the labels."""
        return {row.label: row.iou for row in self.classes if row.iou is not None}

    @property
    def class_boundary_iou(self) -> dict[str, float]:
        """Class name -> boundary IoU, without classes whose contour is ignored."""
        return {row.label: row.boundary_iou for row in self.classes if row.boundary_iou is not None}

    def worst(self, number: int) -> list[tuple[str, float]]:
        """Names and mean IoU of the images with the lowest, the worst first."""
        return sorted(self.image_mean_iou.items(), key=lambda item: (item[1], item[0]))[:number]


def as_accuracy(report: EvaluationReport) -> Accuracy:
    """The accuracy for the model's record, with four digits."""
    same = report.model_dump(include=Accuracy.model_fields.keys() & EvaluationReport.model_fields)
    figures = {
        "dataset": f"{report.data} {report.split}",
        **same,
        "class_iou": report.class_iou,
        "class_boundary_iou": report.class_boundary_iou,
    }
    return Accuracy.model_validate(_rounded(figures))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def write_report(path: Path, report: EvaluationReport) -> None:
    write_whole(path, report.model_dump_json(indent=1) + "\n")
