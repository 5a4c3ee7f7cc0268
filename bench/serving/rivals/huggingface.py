"""The code path of Hugging Face's image-segmentation pipeline, without a server, around the very same network.

Network and weights are ours in the clothes of a transformers model, so the cost is the same for every model of this
project; transformers has none with these heads. They are trained ones, which is to the pipeline's good: it makes a
picture of each class that it finds, and random weights find them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from segserve.runtime.network import SegmentationNetwork
from segserve.runtime.record import ModelRecord, read_record
from segserve.runtime.weights import load_network

from ..loop import Work
from ..workload import Workload
from .device import first_device

if TYPE_CHECKING:  # an import that takes seconds, and a package that may be missing
    from transformers import BaseImageProcessor, PreTrainedModel


def prepare(workload: Workload) -> Work:
    """From an image's file to the pipeline's answer: a mask, as a Pillow image, for each class that is present."""
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # it complains that the model is none of its own, and goes on
    record = read_record(workload.model)
    segment = pipeline(
        "image-segmentation",
        model=_model(load_network(record, workload.model), record),
        image_processor=_image_processor(record),
        device=first_device(),
    )

    def work(path: Path) -> object:
        with Image.open(path) as image:
            return segment(image)

    return work


def _model(network: SegmentationNetwork, record: ModelRecord) -> PreTrainedModel:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import SemanticSegmenterOutput

    class Dressed(PreTrainedModel):
        config_class = PretrainedConfig
        main_input_name = "pixel_values"

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.network = network

        def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
            return SemanticSegmenterOutput(logits=self.network(pixel_values))

    return Dressed(PretrainedConfig(id2label=dict(enumerate(record.labels)))).eval()


def _image_processor(record: ModelRecord) -> BaseImageProcessor:
    """One of transformers' own, which resizes by our rule and does not crop, so that the network has the same work."""
    from transformers import MobileNetV2ImageProcessor
    from transformers.image_utils import SizeDict

    class SameSize(MobileNetV2ImageProcessor):
        def resize(self, image: Tensor, size: SizeDict, *how: object, **named: object) -> Tensor:
            height_px, width_px = record.input.resize.size_for(*image.shape[-2:])
            return super().resize(image, SizeDict(height=height_px, width=width_px), *how, **named)

    mean, std = list(record.input.mean), list(record.input.std)
    return SameSize(do_center_crop=False, image_mean=mean, image_std=std)
