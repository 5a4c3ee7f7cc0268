"""Calibrates a trained model: its confidences by a temperature, and int8 inference by the input
ranges of its convolutions.

Source of temperature scaling: Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural
Networks", ICML 2017, arXiv:1706.04599. One half of a split gives the temperature, the other half
measures its effect.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..runtime.acceleration.openvino_model import Ranges, write_ranges
from ..runtime.acceleration.verified import OptimizationError, openvino_network
from ..runtime.decode.image import decode_image
from ..runtime.errors import ModelError, SegserveError
from ..runtime.inference.labels import LabelRule
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import load_network
from ..runtime.record import Calibration, read_record, write_record
from ..runtime.settings import Settings
from ..runtime.telemetry import Timings
from .data import IGNORED, LabelledImages

_PIXELS_PER_IMAGE = 2000
_TEMPERATURES = (0.1, 10.0)
_BINS = 15
_LEVELS = 256  # of a confidence map
_FLOAT32 = Settings(precision="fp32")


def calibrate_model(
    folder: Path, data: LabelledImages, report: Callable[[int], None], *, dataset: str
) -> Calibration:
    """Fits a model's temperature, measures the calibration error, and writes both into the record.

    Every second image of the split, from the first on, gives the temperature.

    Raises:
        ModelError: the model cannot be loaded.
        DataError: an image or its labels cannot be read.
        ValueError: the split has only one image, or one half has no labelled pixel.
    """
    record = read_record(folder).model_copy(update={"calibration": None})
    names = data.names
    if len(names) < 2:
        raise ValueError(f"{dataset}: calibration needs at least two images, got {len(names)}")
    network = load_network(record, folder)
    plain = Segmenter.of(network, record)
    sampled = []
    for finished, name in enumerate(names[::2], start=1):
        sampled.append(_labelled_logits(plain, data, name))
        report(finished)
    temperature = fit_temperature(*map(torch.cat, zip(*sampled, strict=True)))
    found = Calibration(
        temperature=temperature, dataset=dataset, images=len(names), ece_before=0, ece=0
    )
    scaled = Segmenter.of(network, record.model_copy(update={"calibration": found}))
    counts = np.zeros((2, 2, _LEVELS), np.int64)
    for finished, name in enumerate(names[1::2], start=len(sampled) + 1):
        counts += [_count_confidences(segmenter, data, name) for segmenter in (plain, scaled)]
        report(finished)
    before, after = (round(expected_calibration_error(*of_one), 4) for of_one in counts)
    calibration = found.model_copy(update={"ece_before": before, "ece": after})
    write_record(record.model_copy(update={"calibration": calibration}), folder)
    return calibration


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in 0.1..10 with the lowest cross-entropy, for logits, float32 (pixels,
    classes), and labels, int64 (pixels,).
    """
    if not len(labels):
        raise ValueError("no pixel is labelled: a temperature cannot be fitted")
    fitted = minimize_scalar(
        lambda temperature: F.cross_entropy(logits / temperature, labels).item(),
        bounds=_TEMPERATURES,
        method="bounded",
    )
    return round(float(fitted.x), 4)


def expected_calibration_error(pixels: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Mean distance between confidence and accuracy over 15 bins of equal width, in 0..1.

    A bin weighs by its pixels. Source: Naeini, Cooper, Hauskrecht, AAAI 2015.

    Args:
        pixels: (256,): the number of pixels with each value of a confidence map.
        right: (256,): the number of them with the right class.
    """
    if not pixels.any():
        raise ValueError("no pixel is labelled: there is no calibration error")
    confidences = np.arange(_LEVELS) / (_LEVELS - 1)
    bins = np.maximum(np.ceil(confidences * _BINS) - 1, 0).astype(int)
    expected = np.bincount(bins, weights=pixels * confidences, minlength=_BINS)
    got = np.bincount(bins, weights=right, minlength=_BINS)
    return float(np.abs(expected - got).sum() / pixels.sum())


def _labelled_logits(
    segmenter: Segmenter, data: LabelledImages, name: str
) -> tuple[Tensor, Tensor]:
    """Logits, float32 (pixels, classes), and labels, int64 (pixels,), of random labelled pixels."""
    image_rgb, truth = data.pair(name)
    height, width = truth.shape
    labelled = np.flatnonzero(truth != IGNORED)
    sampled = np.random.default_rng(0).choice(
        labelled, min(len(labelled), _PIXELS_PER_IMAGE), replace=False
    )
    y, x = np.divmod(sampled, width)
    positions = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], axis=1)[None, None]
    with torch.inference_mode():
        logits = segmenter.logits(image_rgb, segmenter.plan(height, width), Timings())
        grid = torch.from_numpy(positions).float()
        values = F.grid_sample(logits[None], grid, padding_mode="border", align_corners=False)
    return values[0, :, 0].T, torch.from_numpy(truth.ravel()[sampled].astype(np.int64))


def _count_confidences(segmenter: Segmenter, data: LabelledImages, name: str) -> NDArray[np.int64]:
    """(2, 256): labelled pixels, and those of the right class, per value of the confidence map."""
    image_rgb, truth = data.pair(name)
    segmentation = segmenter.segment(image_rgb, rule=LabelRule(keep_confidence=True))
    confidence_map = segmentation.confidence_map
    if confidence_map is None:
        raise TypeError("the segmenter kept no confidence map")
    labelled = truth != IGNORED
    right = labelled & (segmentation.label_map == truth)
    return np.stack(
        [np.bincount(confidence_map[chosen], minlength=_LEVELS) for chosen in (labelled, right)]
    )


# int8


def quantize_model(folder: Path, images: Sequence[Path], report: Callable[[int], None]) -> None:
    """Measures the ranges of a model's activations and writes them into its folder and its record.

    The int8 network is verified before anything is written. The weights do not change.

    Args:
        images: a few dozen photographs like those that the model will segment.

    Raises:
        ModelError: the model cannot be loaded, or does not support int8.
        SegserveError: an image cannot be read. The message names it.
    """
    record = read_record(folder)
    network = load_network(record, folder)
    segmenter = Segmenter.of(network, record, settings=_FLOAT32)
    network.ranges = measure_ranges(network, _inputs(segmenter, images, report))
    try:
        openvino_network(network, torch.float32, network.ranges)
    except OptimizationError as error:
        raise ModelError(f"{record.name} does not support int8: {error}") from error
    write_record(record.model_copy(update={"int8": write_ranges(network.ranges, folder)}), folder)


def measure_ranges(network: nn.Module, images: Iterable[Tensor]) -> Ranges:
    """The input ranges of the convolutions for these images, float32 (1, 3, H, W), normalised."""
    ranges: dict[str, tuple[float, float]] = {}

    def widen(name: str, given: Tensor) -> None:
        least, largest = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(least, float(given.min())), max(largest, float(given.max())))

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: widen(name, given[0]))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            for image in images:
                network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def _inputs(
    segmenter: Segmenter, images: Sequence[Path], report: Callable[[int], None]
) -> Iterator[Tensor]:
    for finished, path in enumerate(images, start=1):
        try:
            image_rgb = decode_image(path.read_bytes(), max_pixels=_FLOAT32.max_image_pixels)
        except SegserveError as error:
            raise type(error)(f"{path}: {error}") from error
        yield segmenter.preprocess(image_rgb)
        report(finished)
