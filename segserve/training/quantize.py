"""Prepares a model for int8 inference: measures the input ranges of its convolutions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runtime.acceleration.openvino_model import Ranges, write_ranges
from ..runtime.acceleration.verified import OptimizationError, openvino_network
from ..runtime.decode.image import decode_image
from ..runtime.errors import ModelError, SegserveError
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import load_network
from ..runtime.record import read_record, write_record
from ..runtime.settings import Settings

_FLOAT32 = Settings(precision="fp32")


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
    """The input ranges of the network's convolutions for these images.

    Args:
        images: float32 (1, 3, H, W), normalised.
    """
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
