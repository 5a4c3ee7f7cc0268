"""One look at every image and label map of a split before anything is computed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.record import ClassInfo
from .errors import DataError
from .labelled import IGNORED, LabelledImages


@dataclass(frozen=True)
class Scan:
    """What a split holds.

    Attributes:
        presence: bool (images, classes), which image holds which class.
        pixels: int64 (classes,), how many pixels each class has.
        notes: what is odd and yet no error, for people to read.
    """

    presence: NDArray[np.bool_]
    pixels: NDArray[np.int64]
    notes: tuple[str, ...]


class _Finding(NamedTuple):
    """Of one image: pixels by class, int64 (classes,), and what is wrong."""

    pixels: NDArray[np.int64]
    problems: list[str]


def scan(
    data: LabelledImages,
    classes: Sequence[ClassInfo],
    report: Callable[[int], None] = lambda _finished: None,
) -> Scan:
    """Reads every image and label map of the split, each once and whole.

    Args:
        report: called after every image with the number of finished ones.

    Raises:
        DataError: with all that is wrong: files that are missing, cannot be decoded or differ in
            size, labels that are none of the classes, names that stand twice, a split without any
            label.
    """
    presence = np.zeros((len(data.names), len(classes)), dtype=np.bool_)
    pixels, problems = np.zeros(len(classes), np.int64), [*data.problems(), *_repeated_names(data)]
    with ThreadPoolExecutor() as pool:
        findings = pool.map(lambda name: _look_at(data, name, len(classes)), data.names)
        for index, finding in enumerate(findings):
            presence[index] = finding.pixels > 0
            pixels += finding.pixels
            problems += finding.problems
            report(index + 1)
    if not problems and not pixels.any():
        problems.append(
            f"{data.source}: every pixel of the split is labelled {IGNORED}, to be ignored"
        )
    if problems:
        raise DataError(*dict.fromkeys(problems))
    return Scan(presence, pixels, tuple(_notes(data, classes, pixels)))


def _repeated_names(data: LabelledImages) -> Iterable[str]:
    repeated = (name for name, count in Counter(data.names).items() if count > 1)
    return (f"{data.source}: {name} stands more than once" for name in repeated)


def _look_at(data: LabelledImages, name: str, num_classes: int) -> _Finding:
    """Image and label map are both looked at, whatever is wrong with the other."""
    problems: list[str] = []
    size_hw, pixels = None, np.zeros(256, np.int64)
    try:
        size_hw = data.image_size(name)
    except DataError as error:
        problems += error.problems
    try:
        labels = data.labels(name)
        pixels = np.bincount(labels.ravel(), minlength=256)
        if size_hw:
            data.require_same_size(name, size_hw, labels)
    except DataError as error:
        problems += error.problems
    strange = np.flatnonzero(pixels[num_classes:IGNORED]) + num_classes
    if strange.size:
        problems.append(
            f"{data.paths(name)[1]}: labels {strange.tolist()} are none of the {num_classes} "
            "classes: "
            f"expected 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore"
        )
    return _Finding(pixels[:num_classes], problems)


def _notes(
    data: LabelledImages, classes: Sequence[ClassInfo], pixels: NDArray[np.int64]
) -> Iterable[str]:
    absent = [info.label for info, count in zip(classes, pixels, strict=True) if not count]
    if absent:
        yield f"{data.source}: no pixel of {', '.join(absent)}"
