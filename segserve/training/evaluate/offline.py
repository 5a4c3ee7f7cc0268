"""A model folder as a predictor: through the code that serves it, without a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.encode.mask import LabelMap
from ...runtime.errors import ModelError, SegserveError
from ...runtime.inference.segmenter import Segmenter
from ...runtime.network.weights import load_network
from ...runtime.record import Architecture, ModelRecord, read_record
from ...runtime.settings import Settings
from ...schema.request import Options
from .measure import Predictor

_MOST_AT_ONCE = (
    8  # images: beyond that, memory and the interpreter's lock weigh more than threads gain
)
NO_OPTIONS = Options()
NO_SETTINGS = Settings()


@contextmanager
def offline_model(
    folder: Path,
    options: Options = NO_OPTIONS,
    *,
    output_stride: int | None = None,
    settings: Settings = NO_SETTINGS,
) -> Iterator[Predictor]:
    """The model of a folder on the CPU, at another output stride where one is given.

    Raises:
        ModelError: the model cannot be loaded, or not at that output stride.
    """
    record = at_output_stride(read_record(folder), output_stride)
    network = load_network(record, folder)
    with predictor_of(Segmenter.of(network, record, settings=settings), options) as predictor:
        yield predictor


@contextmanager
def predictor_of(segmenter: Segmenter, options: Options = NO_OPTIONS) -> Iterator[Predictor]:
    """A segmenter with torch's threads given to several images at once.

    Such images wait for each other less than the parts of one image do.
    """

    def label_map(name: str, image_rgb: NDArray[np.uint8]) -> LabelMap:
        try:
            return segmenter.segment(image_rgb, mode=options.mode, tta=options.tta).label_map
        except SegserveError as error:
            raise ValueError(f"{name}: {error}") from error

    threads = torch.get_num_threads()
    at_once = min(threads, _MOST_AT_ONCE)
    torch.set_num_threads(threads // at_once)
    try:
        yield Predictor(segmenter.record, label_map, at_once, options)
    finally:
        torch.set_num_threads(threads)


def at_output_stride(record: ModelRecord, output_stride: int | None) -> ModelRecord:
    """The record with the backbone at that output stride and the atrous rates scaled along.

    Half the stride doubles the rates, so that the same weights look at the same places of the image
    (Chen et al., arXiv:1706.05587, section 4.1).

    Raises:
        ModelError: the head does not work on the last level alone, or a rate would be no whole
            number.
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
            "whole"
        )
    changed = {
        **architecture.model_dump(),
        "output_stride": output_stride,
        "aspp_rates": tuple(map(int, rates)),
    }
    return record.model_copy(update={"architecture": Architecture.model_validate(changed)})
