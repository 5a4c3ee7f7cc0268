"""Makes a model ready for 8 bits: measures on photographs which values its convolutions are given."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from .runtime.errors import ModelError, SegserveError
from .runtime.image import decode_image
from .runtime.quantized import has_vnni, measure_ranges, quantized_network
from .runtime.record import read_record, write_record
from .runtime.segmenter import Segmenter
from .runtime.settings import Settings
from .runtime.stand_in import StandInError
from .runtime.weights import load_network, write_ranges

_FLOAT32 = Settings(precision="fp32")


def quantize_model(folder: Path, images: Sequence[Path], report: Callable[[int], None]) -> None:
    """Measures the ranges of a model's activations, and writes them into its folder and its record.

    Where the processor can, the network is tried in 8 bits before anything is written. The weights stay as they are.

    Args:
        images: photographs as the model will see them; a few dozen are enough.
        report: called after every image with the number of finished ones.

    Raises:
        ModelError: the model cannot be loaded, or not computed in 8 bits.
        SegserveError: an image cannot be read; it is named.
    """
    record = read_record(folder)
    network = load_network(record, folder)
    segmenter = Segmenter.of(network, record, settings=_FLOAT32)
    ranges = measure_ranges(network, _inputs(segmenter, images, report))
    if has_vnni():
        try:
            quantized_network(network, ranges)
        except StandInError as error:
            raise ModelError(f"{record.name} cannot be computed in 8 bits: {error}") from error
    write_record(record.model_copy(update={"int8": write_ranges(ranges, folder)}), folder)


def _inputs(segmenter: Segmenter, images: Sequence[Path], report: Callable[[int], None]) -> Iterator[Tensor]:
    for finished, path in enumerate(images, start=1):
        try:
            image_rgb = decode_image(path.read_bytes(), max_pixels=_FLOAT32.max_image_pixels)
        except SegserveError as error:
            raise type(error)(f"{path}: {error}") from error
        yield segmenter.preprocess(image_rgb)
        report(finished)
