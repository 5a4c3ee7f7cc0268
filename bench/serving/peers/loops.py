"""Code without a server: our plain loop, the limit (an upper bound for all servers), and Hugging
Face's pipeline.
"""

from collections.abc import Callable
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from bench.images import MAX_PIXELS
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import SegmentationNetwork, load_network
from segserve.runtime.record import ModelRecord, read_record

from ..loop import Work
from ..peer import Workload
from .steps import OurSteps, first_device

if TYPE_CHECKING:  # the import takes seconds, and the package is optional
    from transformers import BaseImageProcessor, PreTrainedModel

_MOST_SHAPES = 64


def prepare_plain_loop(workload: Workload) -> Work:
    """A script with the same code: it converts an image file to its label map as PNG."""
    steps = OurSteps(workload.model, first_device())
    return lambda path: steps.encode(steps.predict(steps.decode(path.read_bytes())))


def prepare_limit(workload: Workload) -> Work:
    """Only the network, compiled and frozen, on prepared tensors: one graph for each input shape of
    the workload's images.
    """
    device = first_device()
    segmenter = Segmenter.load(workload.model, device=device)
    inputs = {path: _input(segmenter, path) for path in set(workload.requests + workload.warm_up)}
    network = load_network(read_record(workload.model), workload.model).to(device, segmenter.dtype)
    compiled = _compiled(network.to(memory_format=torch.channels_last))

    def work(path: Path) -> None:
        with torch.inference_mode():
            compiled(inputs[path])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    for path in {tensor.shape: path for path, tensor in inputs.items()}.values():
        work(path)
    return work


def _input(segmenter: Segmenter, path: Path) -> Tensor:
    """The normalised image, (1, 3, h, w): the input of the segmenter's own network."""
    with torch.inference_mode():
        return segmenter.preprocess(decode_image(path.read_bytes(), max_pixels=MAX_PIXELS))


def _compiled(network: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # Weights become constants: conv-BN fusion, weights in the kernels' layout.
    inductor.freezing = True
    dynamo.recompile_limit = _MOST_SHAPES
    return torch.compile(network, dynamic=False)


def prepare_huggingface(workload: Workload) -> Work:
    """Hugging Face's image-segmentation pipeline with the same network. It converts an image file
    to one mask, a Pillow image, per class present.

    transformers has no model with these heads, so a transformers model wraps our network. Trained
    weights favour the pipeline: with random ones it would create an image for every class.
    """
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity(CRITICAL)  # hides the warning that the model is not its own
    record = read_record(workload.model)
    segment = pipeline(
        "image-segmentation",
        model=_transformers_model(load_network(record, workload.model), record),
        image_processor=_image_processor(record),
        device=first_device(),
    )

    def work(path: Path) -> object:
        with Image.open(path) as image:
            return segment(image)

    return work


def _transformers_model(network: SegmentationNetwork, record: ModelRecord) -> "PreTrainedModel":
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


def _image_processor(record: ModelRecord) -> "BaseImageProcessor":
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
