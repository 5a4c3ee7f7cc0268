"""Measures models on labelled images at their original size: a model folder, with the code that
serves it, or a running server, over HTTP.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..client import ClientError, Segmentation, SegmentationClient, UnreachableError
from ..runtime.encode.mask import LabelMap
from ..runtime.errors import SegserveError
from ..runtime.inference import load_segmenter
from ..runtime.inference.base import BaseSegmenter
from ..runtime.record import ModelRecord
from ..runtime.settings import Settings
from ..schema.request import Options
from .data import IGNORED, LabelledImages
from .report import ClassFigures, EvaluationReport, PixelCounts, by_label, count_pixels

_MAX_IMAGES_AT_ONCE = 8  # more need memory and wait for the interpreter's lock
_MAX_REQUESTS_AT_ONCE = 4  # the server computes one while it decodes, encodes and sends others
NO_OPTIONS = Options()
NO_SETTINGS = Settings()


@dataclass(frozen=True)
class Predictor:
    """A model that predicts label maps.

    Attributes:
        label_map: (name, pixels), uint8 (H, W, 3), RGB -> class ids, uint8 (H, W). Several threads
            call it. A ValueError names the image.
        at_once: the number of images to predict at once.
        options: the options of the requests. The model decides about options that are not set.
        server: the address of the server, None if the model runs in this process.
    """

    record: ModelRecord
    label_map: Callable[[str, NDArray[np.uint8]], LabelMap]
    at_once: int
    options: Options
    server: str | None = None


class EvaluatedImage(NamedTuple):
    """An image, uint8 (H, W, 3), RGB, and its true and predicted label maps, uint8 (H, W)."""

    image_rgb: NDArray[np.uint8]
    truth: LabelMap
    predicted: LabelMap


def segmented(data: LabelledImages, predictor: Predictor, name: str) -> EvaluatedImage:
    """One image of the split and the model's prediction. Raises ValueError, as of `measure`."""
    image_rgb, truth = data.pair(name)
    return EvaluatedImage(image_rgb, truth, predictor.label_map(name, image_rgb))


@contextmanager
def offline_model(
    folder: Path, options: Options = NO_OPTIONS, *, settings: Settings = NO_SETTINGS
) -> Iterator[Predictor]:
    """The model of a folder, on the CPU. Raises ModelError if it cannot be loaded."""
    segmenter = load_segmenter(folder, device="cpu", settings=settings)
    with predictor_of(segmenter, options) as predictor:
        yield predictor


@contextmanager
def predictor_of(segmenter: BaseSegmenter, options: Options = NO_OPTIONS) -> Iterator[Predictor]:
    """A segmenter that uses the threads of PyTorch for several images at once.

    That is faster than to use all threads for one image.
    """

    def label_map(name: str, image_rgb: NDArray[np.uint8]) -> LabelMap:
        segmenter.use_threads(threads // at_once)
        try:
            return segmenter.segment(image_rgb, mode=options.mode, tta=options.tta).label_map
        except SegserveError as error:
            raise ValueError(f"{name}: {error}") from error

    threads = torch.get_num_threads()
    at_once = min(threads, _MAX_IMAGES_AT_ONCE)
    torch.set_num_threads(threads // at_once)
    try:
        yield Predictor(segmenter.record, label_map, at_once, options)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def served_model(
    url: str,
    record: ModelRecord,
    data: LabelledImages,
    options: Options,
    *,
    name: str | None = None,
    token: str | None = None,
) -> Iterator[Predictor]:
    """The model `name` of a running server, by default the record's name.

    Options that are not set are not sent. A response names only the classes of its image, so class
    names and colours come from the record. Every response is checked against the record.
    """
    with SegmentationClient(url, token=token, model=name or record.name) as client:
        members = options.model_dump(include={"mode", "tta"}, exclude_unset=True)

        def label_map(image_name: str, image_rgb: NDArray[np.uint8]) -> LabelMap:
            try:
                segmentation = client.segment(data.paths(image_name)[0], **members)
                return _checked_label_map(segmentation, image_rgb, record)
            except UnreachableError:
                raise
            except (ClientError, ValueError) as error:
                raise ValueError(f"{image_name}: {error}") from error

        yield Predictor(record, label_map, _MAX_REQUESTS_AT_ONCE, options, server=url)


def _checked_label_map(
    segmentation: Segmentation, image_rgb: NDArray[np.uint8], record: ModelRecord
) -> LabelMap:
    """The label map of the response, uint8 (H, W). Raises ValueError if it has another size than
    the image, or other classes than the record.
    """
    labels = dict(enumerate(record.labels))
    for share in segmentation.classes:
        if labels.get(share.id) != share.label:
            raise ValueError(
                f"the server calls class {share.id} {share.label!r:.80}, the record "
                f"{labels.get(share.id)!r}: measure with the record of the model that is served"
            )
    label_map = segmentation.label_map
    (expected_h, expected_w), (height, width) = image_rgb.shape[:2], label_map.shape
    if (height, width) != (expected_h, expected_w):
        raise ValueError(
            f"expected a mask of {expected_w} x {expected_h} pixels, got {width} x {height} pixels"
        )
    return label_map


# Measuring


def measure(
    data: LabelledImages,
    predictor: Predictor,
    report: Callable[[int], None],
    *,
    dataset: str = "",
    min_images: int = 1,
) -> EvaluationReport:
    """Measures a model on a split. Pixels labelled 255 are ignored.

    Several images are processed at once, each by one thread: file, network or request, counts. One
    image is decoded and counted while the network or the server processes another. Only the counts
    of an image are kept.

    Args:
        report: called after every image with the number of finished images.
        min_images: `covered` is over the classes in at least so many images, which is 1 or more.

    Raises:
        ValueError: an image or its labels cannot be read, differ in size, or cannot be segmented, a
            label is no class of the model, or no pixel is labelled. The message names the image.
    """
    began_s, record = perf_counter(), predictor.record
    counts, image_iou = PixelCounts.none(len(record.classes)), {}
    with ThreadPoolExecutor(predictor.at_once) as pool:
        counted = pool.map(lambda name: _counts(data, predictor, name), data.names)
        for finished, (name, of_image) in enumerate(zip(data.names, counted, strict=True), start=1):
            counts += of_image
            if of_image.images_with.any():
                image_iou[name] = of_image.mean_iou
            report(finished)
    if not counts.confusion.any():
        raise ValueError(
            f"every pixel of the {len(data.names)} images is labelled {IGNORED}, to be ignored"
        )
    return EvaluationReport(
        model=record.name,
        model_version=record.version,
        output_stride=record.architecture.output_stride,
        options=predictor.options.model_dump(exclude_unset=True),
        server=predictor.server,
        data=dataset,
        split=data.split,
        images=len(data.names),
        pixels=int(counts.confusion.sum()),
        seconds=round(perf_counter() - began_s, 3),
        mean_iou=counts.mean_iou,
        covered=counts.covered_mean(min_images),
        frequency_weighted_iou=counts.frequency_weighted_iou,
        mean_boundary_iou=counts.mean_boundary_iou,
        pixel_accuracy=counts.pixel_accuracy,
        mean_accuracy=counts.mean_accuracy,
        calibration=record.calibration,
        classes=_class_figures(counts, record.labels),
        confusion=counts.confusion.tolist(),
        image_mean_iou=image_iou,
    )


def _counts(data: LabelledImages, predictor: Predictor, name: str) -> PixelCounts:
    image = segmented(data, predictor, name)
    try:
        return count_pixels(image.truth, image.predicted, len(predictor.record.classes))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _class_figures(counts: PixelCounts, labels: Sequence[str]) -> tuple[ClassFigures, ...]:
    iou, accuracy, boundary_iou = (
        by_label(labels, figures) for figures in (counts.iou, counts.accuracy, counts.boundary_iou)
    )
    return tuple(
        ClassFigures(
            id=class_id,
            label=label,
            images=int(counts.images_with[class_id]),
            pixels=int(counts.true[class_id]),
            iou=iou.get(label),
            accuracy=accuracy.get(label),
            boundary_iou=boundary_iou.get(label),
        )
        for class_id, label in enumerate(labels)
    )
