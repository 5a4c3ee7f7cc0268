"""Measures a model on labelled images, at the images' own size and through the code that serves them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from .runtime.record import Accuracy
from .runtime.segmenter import Segmenter
from .train.dataset import IGNORED, VocFolder


@dataclass(frozen=True)
class Evaluation:
    """`confusion` counts pixels, int64 (true class, predicted class); `images_with` counts a class's images."""

    labels: tuple[str, ...]
    images: int
    confusion: Tensor
    images_with: Tensor

    @property
    def class_iou(self) -> dict[str, float]:
        """Intersection over union of every class that the data holds, in 0..1."""
        intersection = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        return {
            label: float(intersection[index] / union[index])
            for index, label in enumerate(self.labels)
            if self.images_with[index]
        }

    def mean_iou(self, min_images: int = 1) -> float:
        """Mean over the classes that at least so many images hold."""
        class_iou = self.class_iou
        return float(np.mean([class_iou[label] for label in self.covered(min_images)]))

    def covered(self, min_images: int) -> list[str]:
        return [label for label, count in zip(self.labels, self.images_with, strict=True) if count >= min_images]

    @property
    def pixel_accuracy(self) -> float:
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    def as_accuracy(self, dataset: str) -> Accuracy:
        return Accuracy(
            dataset=dataset,
            images=self.images,
            mean_iou=round(self.mean_iou(), 4),
            pixel_accuracy=round(self.pixel_accuracy, 4),
            class_iou={label: round(value, 4) for label, value in self.class_iou.items()},
        )


def evaluate(segmenter: Segmenter, data: VocFolder, report: Callable[[int], None]) -> Evaluation:
    """Segments every image of the split and counts its pixels; those labelled 255 are left out.

    Args:
        report: called after every image with the number of finished ones.

    Raises:
        ValueError: an image and its label map differ in size, or a label is none of the model's classes.
    """
    labels = segmenter.record.labels
    confusion = torch.zeros((len(labels), len(labels)), dtype=torch.int64)
    images_with = torch.zeros(len(labels), dtype=torch.int64)
    names = data.names
    for finished, name in enumerate(names, start=1):
        predicted, truth = _pair(segmenter, data, name)
        counts = multiclass_confusion_matrix(predicted, truth, len(labels), ignore_index=IGNORED)
        confusion += counts
        images_with += counts.sum(1) > 0
        report(finished)
    return Evaluation(labels, len(names), confusion, images_with)


def _pair(segmenter: Segmenter, data: VocFolder, name: str) -> tuple[Tensor, Tensor]:
    image_rgb, truth = data.pair(name)
    strange = set(np.unique(truth)) - {*range(len(segmenter.record.classes)), IGNORED}
    if strange:
        raise ValueError(f"{name}: labels {sorted(map(int, strange))} are none of the model's classes")
    predicted = segmenter.segment(image_rgb).label_map
    return torch.from_numpy(predicted), torch.from_numpy(truth)
