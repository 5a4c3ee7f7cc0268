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
from .rivals import Rivals, find_rivals

# So many logits exist at the image's size at a time: 1.4 MB, within the cache.
_STRIP_LOGITS = 21 * 2**14

# So many columns are resized by a product with a matrix, on which processors are several times as quick.
_FEW_COLUMNS = 64


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
    of a large image never exist at once. Classes that win nowhere are brought there as one, see `rivals.py`.

    Args:
        logits: float32 (classes, h, w).
    """
    rivals = find_rivals(logits)
    if width_px * len(rivals.logits) <= _STRIP_LOGITS:
        labelled = _label_strips(rivals, height_px, width_px, rule)
    else:  # a single row would already be too much: strips of columns
        labelled = _label_strips(rivals.turned(), width_px, height_px, rule).turned()
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


def _label_strips(rivals: Rivals, height_px: int, width_px: int, rule: LabelRule) -> _Labelled:
    label_map = torch.empty((height_px, width_px), dtype=torch.uint8)
    confidence_map = torch.empty_like(label_map) if rule.keep_confidence else None
    pixels = torch.zeros(rivals.num_classes, dtype=torch.int64, device=rivals.logits.device)
    confidence = torch.zeros(rivals.num_classes, dtype=torch.float64, device=rivals.logits.device)
    becomes = _becomes(rule, rivals)
    possible = {*becomes, BACKGROUND}
    rows_px = max(1, _STRIP_LOGITS // (width_px * len(rivals.logits)))
    for top_px in range(0, height_px, rows_px):
        strip = slice(top_px, min(top_px + rows_px, height_px))
        strip_logits = upsampled_rows(rivals.logits, strip.start, strip.stop, height_px, width_px)
        labels, probabilities = _top_class(strip_logits, becomes)
        if rule.threshold > 0:
            labels = labels.where(probabilities >= rule.threshold, BACKGROUND)
        label_map[strip] = labels
        if confidence_map is not None:
            confidence_map[strip] = (255 * probabilities).round_()
        for class_id in possible:
            has_class = labels == class_id
            pixels[class_id] += has_class.count_nonzero()
            confidence[class_id] += (probabilities * has_class).sum()
    kept_map = None if confidence_map is None else confidence_map.numpy()
    return _Labelled(label_map.numpy(), kept_map, pixels.tolist(), confidence.tolist())


def _becomes(rule: LabelRule, rivals: Rivals) -> list[int]:
    """By rival the label that its pixels get: its own class, or the background where the rule does not keep it."""
    return [class_id if rule.kept is None or class_id in rule.kept else BACKGROUND for class_id in rivals.class_ids]


def _top_class(logits: Tensor, becomes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The label of the top class, uint8 (H, W), and its softmax probability, float32 (H, W).

    Args:
        logits: float32 (C, H, W).
        becomes: the labels of the first classes, one of which is on top of every pixel.
    """
    top, labels = logits[0], torch.full_like(logits[0], becomes[0], dtype=torch.uint8)
    for class_logits, label in zip(logits[1:], becomes[1:], strict=False):  # few: cheaper than max with its indices
        labels.masked_fill_(class_logits > top, label)
        top = torch.maximum(top, class_logits)
    return labels, (logits - top).exp_().sum(dim=0).reciprocal_()


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
    if logits.shape[2] > _FEW_COLUMNS:
        return F.interpolate(rows[None], size=(bottom - top, width), mode="bilinear", align_corners=False)[0]
    columns = torch.eye(logits.shape[2], device=logits.device)
    return rows @ F.interpolate(columns[None, None], size=(len(columns), width), mode="bilinear")[0, 0]


def _box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
