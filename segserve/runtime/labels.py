"""From logits to the class of every pixel at the image's own size, and the table of the classes that are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from .mask import LabelMap
from .quality import Quality, measure_quality
from .record import BACKGROUND

# Logits of so many pixels exist at the image's size at a time: 16 Ki x 21 classes x 4 bytes = 1.4 MB, within the cache.
_STRIP_PIXELS = 2**14


@dataclass(frozen=True)
class LabelRule:
    """What becomes of a pixel's top class, and whether its probability is kept.

    Attributes:
        kept: ids of the classes that stay, or None for all; pixels of others become background.
        threshold: a pixel whose top probability is lower becomes background.
        keep_confidence: whether to keep every pixel's top probability.
    """

    kept: frozenset[int] | None = None
    threshold: float = 0.0
    keep_confidence: bool = False


EVERY_PIXEL = LabelRule()


@dataclass(frozen=True)
class ClassSummary:
    """One class of an image.

    Attributes:
        pixels: how many pixels have this class.
        fraction: their share of the image, in 0..1.
        box_xyxy: x_min, y_min, x_max, y_max in pixels, maxima exclusive.
        confidence: mean of the pixels' top probability, in 0..1.
    """

    class_id: int
    pixels: int
    fraction: float
    box_xyxy: tuple[int, int, int, int]
    confidence: float


@dataclass(frozen=True)
class Segmentation:
    """The classes of an image's pixels.

    Attributes:
        label_map: uint8 (H, W), the class id of every pixel.
        classes: those present, largest first.
        confidence_map: uint8 (H, W), 255 times every pixel's top probability, rounded, where it was asked for. It is
            that of the class the network chose, also where the rule made background of it.
        quality: what the network makes of the image as a whole, whatever the rule.
    """

    label_map: LabelMap
    classes: tuple[ClassSummary, ...]
    confidence_map: NDArray[np.uint8] | None = None
    quality: Quality | None = None


def choose_labels(logits: Tensor, height_px: int, width_px: int, rule: LabelRule = EVERY_PIXEL) -> Segmentation:
    """Chooses the class of every pixel at the image's size.

    The logits are brought to that size before the class is chosen, a strip of rows at a time, so that those
    of a large image never exist at once.

    Args:
        logits: float32 (classes, h, w).
    """
    if width_px <= _STRIP_PIXELS:
        labelled = _label_strips(logits, height_px, width_px, rule)
    else:  # a single row would already be too much: strips of columns
        labelled = _label_strips(logits.mT, width_px, height_px, rule).turned()
    return Segmentation(labelled.label_map, labelled.summaries(), labelled.confidence_map, measure_quality(logits))


@dataclass(frozen=True)
class _Labelled:
    """Maps as in `Segmentation`, and by class its pixels and the sum of their top probabilities."""

    label_map: LabelMap
    confidence_map: NDArray[np.uint8] | None
    pixels: Sequence[int]
    confidence: Sequence[float]

    def turned(self) -> Self:
        """Rows for columns."""
        confidence_map = None if self.confidence_map is None else np.ascontiguousarray(self.confidence_map.T)
        return type(self)(np.ascontiguousarray(self.label_map.T), confidence_map, self.pixels, self.confidence)

    def summaries(self) -> tuple[ClassSummary, ...]:
        pixels = self.pixels
        present = sorted((class_id for class_id, count in enumerate(pixels) if count), key=lambda i: (-pixels[i], i))
        return tuple(
            ClassSummary(
                class_id=class_id,
                pixels=pixels[class_id],
                fraction=pixels[class_id] / self.label_map.size,
                box_xyxy=_box_xyxy(self.label_map == class_id),
                confidence=self.confidence[class_id] / pixels[class_id],
            )
            for class_id in present
        )


def _label_strips(logits: Tensor, height_px: int, width_px: int, rule: LabelRule) -> _Labelled:
    num_classes = logits.shape[0]
    label_map = torch.empty((height_px, width_px), dtype=torch.uint8)
    confidence_map = torch.empty_like(label_map) if rule.keep_confidence else None
    pixels = torch.zeros(num_classes, dtype=torch.int64)
    confidence = torch.zeros(num_classes, dtype=torch.float64)
    becomes = _becomes(rule, num_classes, logits.device)
    rows_px = max(1, _STRIP_PIXELS // width_px)
    for top_px in range(0, height_px, rows_px):
        strip = slice(top_px, min(top_px + rows_px, height_px))
        labels, probabilities = _top_class(upsampled_rows(logits, strip.start, strip.stop, height_px, width_px))
        if rule.threshold > 0:
            labels = labels.where(probabilities >= rule.threshold, BACKGROUND)
        if becomes is not None:
            labels = becomes[labels]
        label_map[strip] = labels
        if confidence_map is not None:
            confidence_map[strip] = (255 * probabilities).round_()
        flat = labels.flatten()
        pixels += torch.bincount(flat, minlength=num_classes).cpu()
        confidence += torch.bincount(flat, weights=probabilities.flatten().double(), minlength=num_classes).cpu()
    kept_map = None if confidence_map is None else confidence_map.numpy()
    return _Labelled(label_map.numpy(), kept_map, pixels.tolist(), confidence.tolist())


def _becomes(rule: LabelRule, num_classes: int, device: torch.device) -> Tensor | None:
    """By class id, the id that its pixels get; None where all stay as they are."""
    if rule.kept is None:
        return None
    ids = [class_id if class_id in rule.kept else BACKGROUND for class_id in range(num_classes)]
    return torch.tensor(ids, device=device)


def upsampled_rows(logits: Tensor, top: int, bottom: int, height: int, width: int) -> Tensor:
    """Rows `top` to `bottom` (exclusive) of `logits` (C, h, w) resized bilinearly to (C, height, width).

    The same as `interpolate(align_corners=False)` of the whole: a bilinear resize is separable, so rows are mixed
    first and columns after.
    """
    source_height = logits.shape[1]
    position = (torch.arange(top, bottom, device=logits.device) + 0.5) * (source_height / height) - 0.5
    position = position.clamp(min=0)
    above = position.long().clamp(max=source_height - 1)
    below = (above + 1).clamp(max=source_height - 1)
    rows = torch.lerp(logits[:, above], logits[:, below], (position - above).view(1, -1, 1))
    return F.interpolate(rows[None], size=(bottom - top, width), mode="bilinear", align_corners=False)[0]


def _top_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(C, rows, W) -> class ids, int64 (rows, W), and their softmax probabilities, float32 (rows, W)."""
    top, labels = logits.max(dim=0)
    return labels, (logits - top).exp_().sum(dim=0).reciprocal_()


def _box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
