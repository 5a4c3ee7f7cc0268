"""Logits to the class of every pixel at the image's size, and a table of the classes."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...schema.response import ClassArea
from ..encode.mask import LabelMap
from ..record import BACKGROUND
from .arrays import Array, empty, equal_to, is_on_cpu, namespace, on_host, zeros
from .logits import CandidateMap, Upsampling


@dataclass(frozen=True)
class Quality:
    """Means over an image's pixels, on the network's own grid, before `classes` and `threshold` are
    applied.

    Attributes:
        shares: by class id, the fraction of pixels with this top class; they sum to 1.
        confidence: mean top probability, in 0..1.
        entropy: mean entropy of the probabilities, divided by the largest possible entropy: in
            0..1.
    """

    shares: tuple[float, ...]
    confidence: float
    entropy: float

    @property
    def is_background_only(self) -> bool:
        return self.shares[BACKGROUND] == 1


def measure_quality(logits: Array) -> Quality:
    """Measures the quality signals of logits, float32 (classes, h, w).

    They are measured before the logits are resized to the image's size. At that size, they would
    cost as much as choosing the labels.
    """
    xp, num_classes = namespace(logits), len(logits)
    top, labels = xp.amax(logits, 0), xp.argmax(logits, 0)
    weights = logits - top
    xp.exp(weights, out=weights)
    total = xp.sum(weights, 0)
    # H = -sum p ln p with p = weights / total and ln p = logits - top - ln total. This avoids a
    # second tensor of logarithms.
    weights *= logits
    entropy = xp.log(total) + top - xp.sum(weights, 0) / total
    pixels = xp.bincount(labels.flatten(), minlength=num_classes).tolist()
    confidence, mean_entropy = float(xp.mean(1 / total)), float(xp.mean(entropy))
    # With a single class, the entropy is 0 and log(1) cannot be a divisor. Rounding may give a
    # value just below 0.
    largest = math.log(max(2, num_classes))
    shares = tuple(count / sum(pixels) for count in pixels)
    return Quality(shares, confidence, min(1.0, max(0.0, mean_entropy / largest)))


# Pixels labelled at a time. The logits of a few classes for them stay within the cache.
_STRIP_PIXELS = 2**17

# A GPU waits for the kernel launches of every strip and has no such cache, so most images are one
# strip there. In the worst case, with 21 classes that may win everywhere, the logits of a strip
# take 176 MB.
_STRIP_PIXELS_ON_GPU = 2**21

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class LabelRule:
    """Which of the pixels' top classes are kept, and whether their probabilities are kept.

    Attributes:
        kept: ids of the classes to keep, or None for all; pixels of other classes become
            background.
        threshold: a pixel with a lower top probability becomes background.
        keep_confidence: whether to keep every pixel's top probability.
    """

    kept: frozenset[int] | None = None
    threshold: float = 0.0
    keep_confidence: bool = False


EVERY_PIXEL = LabelRule()


@dataclass(frozen=True)
class SegmentedImage:
    """The classes of an image's pixels.

    Attributes:
        label_map: uint8 (H, W), the class id of every pixel.
        classes: the classes present, largest first.
        confidence_map: uint8 (H, W), 255 times every pixel's top probability, rounded; None unless
            requested. It belongs to the class that the network chose, even where the rule replaced
            the class with background.
        quality: quality signals of the network's output for the image; independent of the rule.
    """

    label_map: LabelMap
    classes: tuple[ClassArea, ...]
    confidence_map: NDArray[np.uint8] | None = None
    quality: Quality | None = None


def choose_labels(
    logits: Array,
    height_px: int,
    width_px: int,
    rule: LabelRule = EVERY_PIXEL,
    *,
    temperature: float = 1.0,
) -> SegmentedImage:
    """Chooses the class of every pixel at the image's size.

    The logits are resized to that size before the class is chosen. This is done for one strip of
    rows at a time, so the logits of a large image never exist at once. In each strip, the classes
    that cannot win are merged into one, see `logits.py`.

    Args:
        logits: float32 (classes, h, w).
        temperature: probabilities are the softmax of the logits divided by this (Guo et al.,
            arXiv:1706.04599). The top class does not depend on it.
    """
    label_map = empty(logits, (height_px, width_px), "uint8")
    confidence_map = empty(logits, (height_px, width_px), "uint8") if rule.keep_confidence else None
    if width_px <= _strip_pixels(logits):
        counts = _label_strips(logits, label_map, confidence_map, rule, temperature)
    else:  # one row is larger than a strip: use strips of columns
        turned = namespace(logits).swapaxes(logits, 1, 2)
        turned_map = None if confidence_map is None else confidence_map.T
        counts = _label_strips(turned, label_map.T, turned_map, rule, temperature)
    # Whole maps are copied from a GPU at once. Only here does the CPU wait for the GPU.
    labels = on_host(label_map)
    confidences = None if confidence_map is None else on_host(confidence_map)
    quality = measure_quality(logits / temperature)
    return SegmentedImage(labels, counts.areas(labels), confidences, quality)


def _label_strips(
    logits: Array,
    label_map: Array,
    confidence_map: Array | None,
    rule: LabelRule,
    temperature: float,
) -> "_ClassCounts":
    """Fills the maps, uint8 (H, W), strip by strip."""
    height_px, width_px = label_map.shape
    counts = _ClassCounts(logits)
    candidate_map = CandidateMap.of(logits, temperature)
    upsampling = Upsampling((logits.shape[1], logits.shape[2]), (height_px, width_px), logits)
    rows_px = max(1, _strip_pixels(logits) // width_px)
    for top_px in range(0, height_px, rows_px):
        strip = slice(top_px, top_px + rows_px)
        candidates = candidate_map.candidates(upsampling.grid_rows(strip))
        strip_logits = upsampling.strip(candidates.logits * _LOG2_E, strip)
        labels, probabilities = _top_class(strip_logits, candidates.class_ids, temperature)
        if rule.kept is None and rule.threshold == 0:
            possible = set(candidates.class_ids)
        else:
            possible = {*candidates.class_ids, BACKGROUND}
            labels = _with_rule(labels, probabilities, candidates.class_ids, rule)
        counts.add(labels, probabilities, possible)
        label_map[strip] = labels
        if confidence_map is not None:
            confidence_map[strip] = (255 * probabilities).round()
    return counts


def _strip_pixels(logits: Array) -> int:
    return _STRIP_PIXELS if is_on_cpu(logits) else _STRIP_PIXELS_ON_GPU


def _top_class(
    logits: Array, class_ids: Sequence[int], temperature: float = 1.0
) -> tuple[Array, Array]:
    """The top class, uint8 (H, W), and its softmax probability, float32 (H, W).

    Args:
        logits: float32 (C, H, W), multiplied by log2(e): processors compute powers of 2 at a third
            of the cost.
        class_ids: ids of the first logits, ascending; one of these classes wins at every pixel.
        temperature: divides the differences of logits, not the logits: rounding could make two of
            the quotients equal.
    """
    xp = namespace(logits)
    top, labels = logits[0], xp.full_like(logits[0], class_ids[0], dtype=xp.uint8)
    beaten = list(logits[len(class_ids) :])
    for class_logits, class_id in zip(logits[1:], class_ids[1:], strict=False):
        # A later class has a higher id, so the maximum is the last winner. This is far cheaper than
        # filling by a mask.
        labels = xp.maximum(labels, (class_logits > top).view(xp.uint8) * class_id)
        beaten.append(xp.minimum(top, class_logits))
        top = xp.maximum(top, class_logits)
    exponentials = xp.ones_like(top)  # of the top class
    for class_logits in beaten:
        power = class_logits - top
        power *= 1 / temperature
        exponentials += xp.exp2(power, out=power)
    return labels, xp.reciprocal(exponentials, out=exponentials)


def _with_rule(
    labels: Array, probabilities: Array, class_ids: Sequence[int], rule: LabelRule
) -> Array:
    """Replaces the labels that the rule does not keep with background."""
    kept = probabilities >= rule.threshold
    if rule.kept is not None:
        for class_id in set(class_ids) - rule.kept:
            kept &= labels != class_id
    xp = namespace(labels)
    return xp.where(kept, labels, xp.full_like(labels, BACKGROUND))


class _ClassCounts:
    """By class: its pixels, and the sum of their top probabilities, float64."""

    def __init__(self, logits: Array) -> None:
        self.pixels = zeros(logits, [len(logits)], "float64")
        self.confidence = zeros(logits, [len(logits)], "float64")

    def add(self, labels: Array, probabilities: Array, possible: Collection[int]) -> None:
        """Counts a part of an image that has no other classes than `possible`."""
        if len(possible) == 1:
            (class_id,) = possible
            self.pixels[class_id] += math.prod(labels.shape)
            self.confidence[class_id] += _sum(probabilities)
            return
        for class_id in possible:
            has_class = equal_to(labels, class_id)
            self.pixels[class_id] += _sum(has_class)
            self.confidence[class_id] += _sum(probabilities * has_class)

    def areas(self, label_map: LabelMap) -> tuple[ClassArea, ...]:
        """The classes of the whole label map, largest first."""
        pixels, confidence = (on_host(sums).tolist() for sums in (self.pixels, self.confidence))
        largest_first = sorted(enumerate(pixels), key=lambda item: -item[1])
        return tuple(
            ClassArea(
                id=class_id,
                pixels=int(count),
                fraction=count / label_map.size,
                box_xyxy=_box_xyxy(label_map == class_id),
                confidence=confidence[class_id] / count,
            )
            for class_id, count in largest_first
            if count
        )


def _sum(values: Array) -> Array:
    """Sums float32 (H, W) row by row: exact for counts, and independent of the threads."""
    xp = namespace(values)
    return xp.sum(xp.sum(values, 1), dtype=xp.float64)


def _box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
