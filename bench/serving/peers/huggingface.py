"""Hugging Face's image-segmentation pipeline with the same network, without a server.

transformers has no model with these heads, so a transformers model wraps our network and our
weights. So the pipeline has the same network cost for every model of this project. Trained weights
favour the pipeline: it creates an image for every class found, and random weights would find all
classes.
"""

from __future__ import annotations

from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from segserve.runtime.network.weights import SegmentationNetwork, load_network
from segserve.runtime.record import ModelRecord, read_record

from ..loop import Work
from ..workload import Workload
from .steps import first_device

if TYPE_CHECKING:  # the import takes seconds, and the package is optional
    from transformers import BaseImageProcessor, PreTrainedModel


def prepare(workload: Workload) -> Work:
    """Prepares the pipeline. It converts an image file to one mask, a Pillow image, per class
    present.
    """
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity(CRITICAL)  # hides the warning that the model is not its own
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
    """transformers' own processor with our resize rule and without a crop, so that the network has
    the same work.
    """
    from transformers import MobileNetV2ImageProcessor
    from transformers.image_utils import SizeDict

    class SameSize(MobileNetV2ImageProcessor):
        def resize(self, image: Tensor, size: SizeDict, *how: Any, **named: Any) -> Tensor:
            height_px, width_px = record.input.resize.size_for(*image.shape[-2:])
            return super().resize(image, SizeDict(height=height_px, width=width_px), *how, **named)

    mean, std = list(record.input.mean), list(record.input.std)
    return SameSize(do_center_crop=False, image_mean=mean, image_std=std)
