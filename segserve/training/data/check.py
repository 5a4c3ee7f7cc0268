"""Checks every image and label map of a split before anything is computed from it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.record import BACKGROUND, ClassInfo
from .files import IGNORED, DataError, LabelledImages


@dataclass(frozen=True)
class CheckedSplit:
    """A split without problems, and what it holds.

    Attributes:
        pixels: int64 (classes,): the number of pixels of each class.
        notes: unusual facts that are no errors, as lines of text.
    """

    data: LabelledImages
    pixels: NDArray[np.int64]
    notes: tuple[str, ...]


class _Finding(NamedTuple):
    """Of one image: the pixels of each class, int64 (classes,), and the problems."""

    pixels: NDArray[np.int64]
    problems: list[str]


def check_split(
    data: LabelledImages,
    classes: Sequence[ClassInfo],
    report: Callable[[int], None] = lambda _finished: None,
    *,
    skip_broken: bool = False,
) -> CheckedSplit:
    """Reads every image and label map of the split once and completely.

    Args:
        report: called after every image with the number of finished ones.
        skip_broken: leave out images that have problems, and say how many.

    Raises:
        DataError: lists all problems: files that are missing, cannot be decoded or differ in size,
            labels that are no class id, duplicate names, a split without a labelled pixel or
            without a pixel of a foreground class.
    """
    pixels, problems = np.zeros(len(classes), np.int64), [*data.problems(), *_repeated_names(data)]
    with ThreadPoolExecutor() as pool:
        findings = pool.map(lambda name: _check_image(data, name, len(classes)), data.names)
        kept = []
        for name, finding in zip(data.names, findings, strict=True):
            if skip_broken and finding.problems:
                continue
            kept.append(name)
            pixels += finding.pixels
            problems += finding.problems
            report(len(kept))
    problems = problems or [*_without_foreground(data, pixels)]
    if problems:
        raise DataError(*dict.fromkeys(problems))
    notes = [*data.notes(), *_notes(data, classes, pixels)]
    if left_out := len(data.names) - len(kept):
        data.names = kept
        notes.append(f"{data.source}: {left_out} images left out, which are broken")
    return CheckedSplit(data, pixels, tuple(notes))


def _repeated_names(data: LabelledImages) -> Iterable[str]:
    repeated = (name for name, count in Counter(data.names).items() if count > 1)
    return (f"{data.source}: {name} is listed more than once" for name in repeated)


def _without_foreground(data: LabelledImages, pixels: NDArray[np.int64]) -> Iterable[str]:
    if not pixels.any():
        yield (
            f"{data.source}: every pixel of the split is labelled {IGNORED}, to be ignored"
            f"{data.hint()}"
        )
    elif not pixels[BACKGROUND + 1 :].any():
        yield (
            f"{data.source}: the split has no foreground pixel: every label is {BACKGROUND}, the "
            f"background, or {IGNORED}, to be ignored{data.hint()}"
        )


def _check_image(data: LabelledImages, name: str, num_classes: int) -> _Finding:
    """Checks the image and the label map, each even if the other has a problem."""
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
    unknown = np.flatnonzero(pixels[num_classes:IGNORED]) + num_classes
    if unknown.size:
        problems.append(
            f"{data.paths(name)[1]}: labels {unknown.tolist()} are none of the {num_classes} "
            f"classes: expected 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore"
        )
    return _Finding(pixels[:num_classes], problems)


def _notes(
    data: LabelledImages, classes: Sequence[ClassInfo], pixels: NDArray[np.int64]
) -> Iterable[str]:
    absent = [info.label for info, count in zip(classes, pixels, strict=True) if not count]
    if absent:
        yield f"{data.source}: no pixel of {', '.join(absent)}"
