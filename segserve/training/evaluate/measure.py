"""Segments every image of a split and counts its pixels, several images at once.

A thread takes an image the whole way: file, network or request, counts. Decoding and counting of
    one image then happen
while the network or the server works on another, and what is kept of an image is its counts alone.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.encode.mask import LabelMap
from ...runtime.record import ModelRecord
from ...schema.request import Options
from ..data import LabelledImages
from .metrics import Evaluation, ImageScore, PixelCounts, count_pixels


@dataclass(frozen=True)
class Predictor:
    """A model that can be asked for label maps.

    Attributes:
        label_map: from an image's name and its pixels, uint8 (H, W, 3), RGB, to class ids, uint8
            (H, W). Called from several threads. ValueError names the image.
        at_once: how many images to ask for at once.
        options: what it is asked to do; those that were not set are the model's own affair.
        server: the address of the server that is asked, None where the model runs here.
    """

    record: ModelRecord
    label_map: Callable[[str, NDArray[np.uint8]], LabelMap]
    at_once: int
    options: Options
    server: str | None = None


class SegmentedImage(NamedTuple):
    """An image, uint8 (H, W, 3), RGB, with what is true and what was predicted, uint8 (H, W)."""

    image_rgb: NDArray[np.uint8]
    truth: LabelMap
    predicted: LabelMap


def measure(
    data: LabelledImages, predictor: Predictor, report: Callable[[int], None]
) -> Evaluation:
    """Measures a model on a split; pixels labelled 255 are left out.

    Args:
        report: called after every image with the number of finished ones.

    Raises:
        ValueError: an image or its labels cannot be read, differ in size, or cannot be segmented, a
            label is none of the model's classes, or no pixel is labelled at all. The image is
            named.
    """
    began_s, names = perf_counter(), data.names
    labels = predictor.record.labels
    counts, scores = PixelCounts.none(len(labels)), []
    with ThreadPoolExecutor(predictor.at_once) as pool:
        counted = pool.map(lambda name: _counts(data, predictor, name), names)
        for finished, (name, of_image) in enumerate(zip(names, counted, strict=True), start=1):
            counts += of_image
            if of_image.images_with.any():
                scores.append(ImageScore(name, float(np.nanmean(of_image.iou))))
            report(finished)
    return Evaluation(labels, counts, tuple(scores), len(names), perf_counter() - began_s)


def segmented(data: LabelledImages, predictor: Predictor, name: str) -> SegmentedImage:
    """One image of the split and what the model says about it; errors as in `measure`."""
    image_rgb, truth = data.pair(name)
    return SegmentedImage(image_rgb, truth, predictor.label_map(name, image_rgb))


def _counts(data: LabelledImages, predictor: Predictor, name: str) -> PixelCounts:
    image = segmented(data, predictor, name)
    try:
        return count_pixels(image.truth, image.predicted, len(predictor.record.classes))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
