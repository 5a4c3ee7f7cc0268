"""The models that are measured: a model folder, with the code that serves it, or a running server,
over HTTP.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..client import ClientError, Segmentation, SegmentationClient, UnreachableError
from ..runtime.architecture import Architecture
from ..runtime.encode.mask import LabelMap
from ..runtime.errors import ModelError, SegserveError
from ..runtime.inference.base import AnySegmenter
from ..runtime.inference.loading import load_segmenter
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network.weights import load_network
from ..runtime.record import ModelRecord, read_record
from ..runtime.settings import Settings
from ..schema.request import Options
from .data import LabelledImages

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


class SegmentedImage(NamedTuple):
    """An image, uint8 (H, W, 3), RGB, and its true and predicted label maps, uint8 (H, W)."""

    image_rgb: NDArray[np.uint8]
    truth: LabelMap
    predicted: LabelMap


def segmented(data: LabelledImages, predictor: Predictor, name: str) -> SegmentedImage:
    """One image of the split and the model's prediction.

    Raises:
        ValueError: the image or its labels cannot be read, differ in size, or cannot be segmented.
            The message names the image.
    """
    image_rgb, truth = data.pair(name)
    return SegmentedImage(image_rgb, truth, predictor.label_map(name, image_rgb))


@contextmanager
def offline_model(
    folder: Path,
    options: Options = NO_OPTIONS,
    *,
    output_stride: int | None = None,
    settings: Settings = NO_SETTINGS,
) -> Iterator[Predictor]:
    """The model of a folder, on the CPU.

    Args:
        output_stride: an output stride other than the model's own.

    Raises:
        ModelError: the model cannot be loaded, or not at that output stride.
    """
    own = read_record(folder)
    record = at_output_stride(own, output_stride)
    if record is own:
        segmenter = load_segmenter(folder, device="cpu", settings=settings)
    else:
        segmenter = Segmenter.of(load_network(record, folder), record, settings=settings)
    with predictor_of(segmenter, options) as predictor:
        yield predictor


@contextmanager
def predictor_of(segmenter: AnySegmenter, options: Options = NO_OPTIONS) -> Iterator[Predictor]:
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


def at_output_stride(record: ModelRecord, output_stride: int | None) -> ModelRecord:
    """The record with another output stride of the backbone and scaled atrous rates.

    Half the stride doubles the rates, so that the same weights cover the same parts of the image
    (Chen et al., arXiv:1706.05587, section 4.1).

    Raises:
        ModelError: the head has several levels as input, or a rate would not be a whole number.
    """
    architecture = record.architecture
    if output_stride in (None, architecture.output_stride):
        return record
    if architecture.head == "multiscale":
        raise ModelError(
            "output stride: the multiscale head works at stride 8 whatever the backbone's: leave "
            "it out"
        )
    rates = [rate * architecture.output_stride / output_stride for rate in architecture.aspp_rates]
    if any(rate % 1 for rate in rates):
        raise ModelError(
            f"output stride {output_stride}: the atrous rates would be {rates}, which are not all "
            "whole numbers"
        )
    changed = {"output_stride": output_stride, "aspp_rates": tuple(map(int, rates))}
    scaled = Architecture.model_validate(architecture.model_dump() | changed)
    return record.model_copy(update={"architecture": scaled})


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
    """The label map of the response, uint8 (H, W).

    Raises:
        ValueError: the response has another size than the image, or other classes than the record.
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
