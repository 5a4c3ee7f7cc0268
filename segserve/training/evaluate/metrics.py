"""From label maps to counted pixels, by torchmetrics, and from these to the figures: a pure
computation.

Pixel accuracy, mean accuracy, mean IoU and frequency-weighted IoU are those of Long, Shelhamer,
Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 5. Counts are
summed over the data set before anything is divided, as PASCAL VOC does, so that an image weighs by
its pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ...runtime.encode.mask import LabelMap
from ...runtime.record import CoveredMean
from ..data import IGNORED
from .boundary import count_boundaries

Counts = NDArray[np.int64]
Figures = NDArray[np.float64]
"""float64 (classes,) in 0..1; NaN where the class has no figure."""


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of one image or of many.

    Attributes:
        confusion: (true class, predicted class), ignored pixels left out.
        boundary: (2, classes), intersections and unions of the boundary regions.
        images_with: (classes,), the images that hold each class.
    """

    confusion: Counts
    boundary: Counts
    images_with: Counts

    @classmethod
    def none(cls, num_classes: int) -> "PixelCounts":
        zeros = [
            np.zeros(shape, np.int64)
            for shape in ((num_classes, num_classes), (2, num_classes), num_classes)
        ]
        return cls(*zeros)

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.images_with + other.images_with,
        )

    @property
    def true(self) -> Counts:
        """Pixels that are labelled as each class."""
        true: Counts = self.confusion.sum(axis=1)
        return true

    @property
    def iou(self) -> Figures:
        """Intersection over union of the classes that the labels hold."""
        hits = self.confusion.diagonal()
        return _divided(hits, self.true + self.confusion.sum(axis=0) - hits, where=self.true > 0)

    @property
    def accuracy(self) -> Figures:
        """Share of each class's labelled pixels that were found: its recall."""
        return _divided(self.confusion.diagonal(), self.true, where=self.true > 0)

    @property
    def boundary_iou(self) -> Figures:
        """Boundary IoU of the classes that the labels hold; none where all of a class's contour is
        ignored.
        """
        agreed, either = self.boundary
        return _divided(agreed, either, where=(self.true > 0) & (either > 0))


def _divided(part: Counts, whole: Counts, *, where: NDArray[np.bool_]) -> Figures:
    figures = np.full(len(part), np.nan)
    np.divide(part, whole, out=figures, where=where)
    return figures


def count_pixels(truth: LabelMap, predicted: LabelMap, num_classes: int) -> PixelCounts:
    """Counts one image.

    Args:
        truth: uint8 (H, W): class ids, 255 where pixels are ignored.
        predicted: uint8 (H, W): class ids below `num_classes`.

    Raises:
        ValueError: a label is neither 255 nor one of the classes; all such labels are named.
    """
    strange = (
        np.flatnonzero(np.bincount(truth.ravel(), minlength=IGNORED + 1)[num_classes:IGNORED])
        + num_classes
    )
    if len(strange):
        raise ValueError(
            f"labels {strange.tolist()} are none of the model's {num_classes} classes: "
            f"expected 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore"
        )
    maps = torch.tensor(predicted), torch.tensor(truth)
    confusion = multiclass_confusion_matrix(
        *maps, num_classes, ignore_index=IGNORED, validate_args=False
    ).numpy()
    present = (confusion.sum(axis=1) > 0).astype(np.int64)
    return PixelCounts(confusion, count_boundaries(truth, predicted, num_classes), present)


@dataclass(frozen=True)
class ImageScore:
    """Mean IoU of one image over the classes that its labels hold."""

    name: str
    mean_iou: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the images of a split.

    Attributes:
        labels: class names by class id.
        scores: of every image that has labelled pixels, in the order of the split.
        images: how many were segmented.
        seconds: what that took, from the first file to the last count.
    """

    labels: tuple[str, ...]
    counts: PixelCounts
    scores: tuple[ImageScore, ...]
    images: int
    seconds: float

    def __post_init__(self) -> None:
        if not self.counts.confusion.any():
            raise ValueError(
                f"every pixel of the {self.images} images is labelled {IGNORED}, to be ignored"
            )

    @property
    def class_iou(self) -> dict[str, float]:
        """By class that the labels hold. One that is only predicted has none of its own but costs
        the others.
        """
        return self._named(self.counts.iou)

    @property
    def class_boundary_iou(self) -> dict[str, float]:
        return self._named(self.counts.boundary_iou)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that the labels hold."""
        return float(np.nanmean(self.counts.iou))

    def covered(self, min_images: int) -> list[str]:
        """The classes that at least so many images hold; `min_images` is at least 1."""
        return [
            label
            for label, count in zip(self.labels, self.counts.images_with, strict=True)
            if count >= min_images
        ]

    def covered_mean(self, min_images: int) -> CoveredMean | None:
        """Mean IoU over the classes that at least so many images hold; None where no class is in so
        many.
        """
        class_iou = self.class_iou
        covered = [class_iou[label] for label in self.covered(min_images)]
        if not covered:
            return None
        return CoveredMean(
            min_images=min_images, classes=len(covered), mean_iou=float(np.mean(covered))
        )

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean over the classes that the labels hold, each weighing by its labelled pixels."""
        true = self.counts.true
        return float(np.nansum(true * self.counts.iou) / true.sum())

    @property
    def pixel_accuracy(self) -> float:
        return float(self.counts.confusion.trace() / self.counts.confusion.sum())

    @property
    def mean_accuracy(self) -> float:
        """Mean of the classes' accuracies, over the classes that the labels hold."""
        return float(np.nanmean(self.counts.accuracy))

    @property
    def mean_boundary_iou(self) -> float | None:
        """Mean over the classes that the labels hold; None where every contour is ignored."""
        class_boundary_iou = self.class_boundary_iou
        return float(np.mean(list(class_boundary_iou.values()))) if class_boundary_iou else None

    def worst(self, number: int) -> list[ImageScore]:
        """The images of lowest mean IoU, the worst first."""
        return sorted(self.scores, key=lambda score: (score.mean_iou, score.name))[:number]

    def _named(self, figures: Figures) -> dict[str, float]:
        return {
            label: float(value)
            for label, value in zip(self.labels, figures, strict=True)
            if not np.isnan(value)
        }
