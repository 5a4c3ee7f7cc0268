"""Compares two models on the same labelled images: differences of IoU with bootstrap intervals."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import ModelError
from .data import IGNORED, LabelledImages
from .measure import Predictor
from .report import Counts, divided

_RESAMPLES, _SEED = 2000, 0
_INTERVAL = (2.5, 97.5)  # percentiles


class Difference(NamedTuple):
    """IoU of the first and the second model, their difference, and its 95 % interval."""

    label: str
    first: float
    second: float
    difference: float
    low: float
    high: float


class _Compared(NamedTuple):
    """Of one image, for both models: intersections and unions, (2, classes); the labelled pixels of
    each class, (classes,); the number of them that changed.
    """

    intersections: Counts
    unions: Counts
    true: Counts
    changed: int


@dataclass(frozen=True)
class Comparison:
    """Two models on one split: the classes that occur in the labels, their mean, and the share of
    all labelled pixels whose class differs.
    """

    classes: tuple[Difference, ...]
    mean: Difference
    changed_share: float


def compare(
    data: LabelledImages,
    first: Predictor,
    second: Predictor,
    report: Callable[[int], None] = lambda _finished: None,
) -> Comparison:
    """Segments every image with both models.

    The intervals come from 2,000 bootstrap samples of the images, the same for both models (Efron,
    1979): a difference whose interval includes 0 may be chance.

    Raises:
        ModelError: the models have different classes.
        ValueError: as of `measure`.
    """
    labels = first.record.labels
    if second.record.labels != labels:
        raise ModelError("the two models have different classes, so they cannot be compared")
    results = []
    # The second model, opened beside the first, finds one thread left and says 1.
    with ThreadPoolExecutor(first.at_once) as pool:
        for compared in pool.map(lambda name: _compared(data, first, second, name), data.names):
            results.append(compared)
            report(len(results))
    return _summary(labels, results)


def _compared(data: LabelledImages, first: Predictor, second: Predictor, name: str) -> _Compared:
    image_rgb, truth = data.pair(name)
    maps = [predictor.label_map(name, image_rgb) for predictor in (first, second)]
    labelled, classes = truth != IGNORED, len(first.record.labels)
    true = np.bincount(truth[labelled], minlength=classes)
    hits = np.stack(
        [np.bincount(truth[labelled & (truth == own)], minlength=classes) for own in maps]
    )
    predicted = np.stack([np.bincount(own[labelled], minlength=classes) for own in maps])
    changed = int((labelled & (maps[0] != maps[1])).sum())
    return _Compared(hits, true + predicted - hits, true, changed)


def _summary(labels: Sequence[str], results: Sequence[_Compared]) -> Comparison:
    true = np.sum([result.true for result in results], axis=0)
    present = np.flatnonzero(true)
    intersections = np.stack([result.intersections[:, present] for result in results])
    unions = np.stack([result.unions[:, present] for result in results])  # (images, 2, classes)
    weights = np.random.default_rng(_SEED).multinomial(
        len(results), np.full(len(results), 1 / len(results)), size=_RESAMPLES
    )
    iou = intersections.sum(0) / unions.sum(0)
    of_samples = [np.einsum("ri,imc->rmc", weights, part) for part in (intersections, unions)]
    with_class = weights @ np.stack([result.true[present] for result in results]) > 0
    sampled = divided(*of_samples, where=with_class[:, None])  # NaN without the class
    differences = sampled[:, 1] - sampled[:, 0]
    rows = tuple(
        _difference(labels[int(class_id)], iou[:, index], differences[:, index])
        for index, class_id in enumerate(present)
    )
    return Comparison(
        rows,
        _difference("mean", iou.mean(axis=1), np.nanmean(differences, axis=1)),
        sum(result.changed for result in results) / int(true.sum()),
    )


def _difference(
    label: str, iou: NDArray[np.float64], differences: NDArray[np.float64]
) -> Difference:
    low, high = np.nanpercentile(differences, _INTERVAL)
    return Difference(label, *map(float, (iou[0], iou[1], iou[1] - iou[0], low, high)))
